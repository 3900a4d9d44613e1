"""Compare models on the same text, and runs by their logs: an HTML page, and a PNG and CSV of every figure."""

import argparse
from pathlib import Path


def main() -> None:
    """Parse the command line and make the comparison. Raises UserError as ``compare``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for compare.html and figures")
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME=DIR", help="a Hugging Face folder; repeat for each model"
    )
    parser.add_argument("--text", type=Path, nargs="+", default=[], metavar="FILE", help=".jsonl or .jsonl.gz")
    parser.add_argument("--json-key", default="text", help="key of a line's text (default: text)")
    parser.add_argument("--teacher", metavar="NAME", help="the model from which each other's KL divergence is taken")
    parser.add_argument(
        "--heatmap",
        action="append",
        default=[],
        metavar="A:B",
        help="colour tokens white to red by how much surer A is than B (RL:base); may be repeated",
    )
    parser.add_argument(
        "--contrast",
        action="append",
        default=[],
        metavar="A:B",
        help="red where A is surer, blue where B is (RL:SFT); may be repeated",
    )
    parser.add_argument("--max-tokens", type=int, default=1_000_000, help="tokens of text to read (default: 1000000)")
    parser.add_argument("--seq-length", type=int, default=1024, help="tokens a model sees at once (default: 1024)")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="dtype of the weights (default: as they were saved)",
    )
    parser.add_argument(
        "--run", action="append", default=[], metavar="NAME=DIR", help="a run's TensorBoard folder; repeat for each run"
    )
    parser.add_argument(
        "--accuracy",
        action="append",
        default=[],
        metavar="FILE or NAME=FILE.json",
        help="CSV with columns run,tokens,seconds,accuracy, or a run's JSON of evaluate_run.py; repeat",
    )
    options = parser.parse_args()
    # Imported late: --help need not wait for torch and transformers.
    from megatron_remit.analysis.build import Request, compare

    compare(Request(**vars(options)))
