"""Write the report of a flywheel run: one self-contained HTML file, and results.json with the same figures."""

import argparse
from pathlib import Path

from megatron_remit.errors import cli


def main() -> None:
    """Parse the arguments and build the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True, help="the folder of a run (docs/report.md)")
    parser.add_argument("--out", type=Path, help="the HTML file to write (default: RUN_DIR/report.html)")
    parser.add_argument("--max-texts", type=int, default=600, help="held-out texts to score for delta (default: 600)")
    arguments = parser.parse_args()
    # Imported late: --help need not wait for torch and transformers.
    from megatron_remit.report.build import build_report

    build_report(arguments.run_dir, arguments.out, arguments.max_texts)


if __name__ == "__main__":
    cli(main)
