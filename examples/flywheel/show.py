"""What a user sees of a run: a progress bar while it trains, and the report at its end."""

import argparse
import json
import re
import sys
from pathlib import Path

from tqdm import tqdm

from megatron_remit.artifacts import write_whole
from megatron_remit.errors import cli

STEP = re.compile(r"iteration +(\d+)/ +(\d+) \|.* lm loss: ([-+.\dEe]+)")


def progress(options: argparse.Namespace) -> None:
    """Turn Megatron's log on standard input into a progress bar; the whole log goes to LOG."""
    bar = None
    with options.log.open("w") as log:
        for line in sys.stdin:
            log.write(line)
            log.flush()
            step = STEP.search(line)
            if step:
                bar = bar or tqdm(total=int(step[2]), unit="step", mininterval=2)
                bar.set_postfix_str(f"loss {float(step[3]):.3f} nats/token", refresh=False)
                bar.update(int(step[1]) - bar.n)
            elif "error: " in line:
                print(line, end="", file=sys.stderr)
    if bar:
        bar.close()


def report(options: argparse.Namespace) -> None:
    """Write the report of a run: one self-contained HTML file, and results.json with the same figures."""
    # Imported late: the progress bar and --help need not wait for torch and transformers.
    from report.build import build_report

    build_report(options.run_dir, options.out, options.max_texts)


def settings(options: argparse.Namespace) -> None:
    """Collect the settings and the seconds of each stage for the report."""
    named = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in options.set)}
    stages = sorted((options.run_dir / "done").iterdir(), key=lambda path: path.stat().st_mtime)
    timings = {path.name: int(path.read_text()) for path in stages}
    for name, content in (("settings", named), ("timings", timings)):
        write_whole(options.run_dir / f"{name}.json", json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for show in (progress, settings, report):
        command = commands.add_parser(show.__name__, help=show.__doc__, description=show.__doc__)
        command.set_defaults(show=show)
        if show is progress:
            command.add_argument("log", type=Path, metavar="LOG")
            continue
        command.add_argument("--run-dir", type=Path, required=True, help="the folder of a run (docs/report.md)")
        if show is settings:
            command.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings, numbers as JSON")
        else:
            command.add_argument("--out", type=Path, help="the HTML file to write (default: RUN_DIR/report.html)")
            command.add_argument(
                "--max-texts", type=int, default=600, help="held-out texts to score for delta (default: 600)"
            )
    options = parser.parse_args()
    options.show(options)


if __name__ == "__main__":
    cli(main)
