"""Writes the report of a run again: RUN_DIR/report.html, one self-contained page, and results.json with its figures."""

import argparse
from pathlib import Path

from megatron_remit.errors import cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("report",), help="what to write")
    parser.add_argument("--run-dir", type=Path, required=True, help="the folder of a run (docs/report.md)")
    parser.add_argument("--out", type=Path, help="the HTML file to write (default: RUN_DIR/report.html)")
    parser.add_argument("--max-texts", type=int, default=600, help="held-out texts to score for delta (default: 600)")
    options = parser.parse_args()
    # Imported late: --help need not wait for torch and transformers.
    from report.build import build_report

    build_report(options.run_dir, options.out, options.max_texts)


if __name__ == "__main__":
    cli(main)
