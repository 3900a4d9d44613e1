"""megatron-remit evaluate: the command line of the paper's evaluation."""

import argparse
from pathlib import Path

from megatron_remit.evaluation.run import Request, evaluate
from megatron_remit.evaluation.suites import SUITES
from megatron_remit.evaluation.table import MODELS

EXAMPLES = """examples:
  %(prog)s --out results --model ReMiT=runs/remit/hf --model NTP=runs/ntp/hf
  %(prog)s --out results --model ReMiT=runs/remit/hf --columns GSM8K MATH    # one job of several
  %(prog)s --out results --model ReMiT=rl/remit --suite zero-shot --allow-code-execution
"""


def main() -> None:
    """Parse the command line, evaluate and print the table. Raises UserError as ``evaluate``."""
    parser = argparse.ArgumentParser(
        description="Run the paper's evaluation on Hugging Face folders with lm-eval, and print its table. What has "
        "been run is not run again.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results")
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME=DIR", help="a Hugging Face folder; repeat for each"
    )
    parser.add_argument("--suite", choices=SUITES, default="base", help="which table (default: %(default)s)")
    parser.add_argument("--columns", nargs="+", default=[], metavar="NAME", help="these columns only, such as GSM8K")
    parser.add_argument(
        "--part", metavar="K/N", help="every Nth of the columns from the Kth, for N jobs beside each other"
    )
    parser.add_argument(
        "--data-only", action="store_true", help="load the data sets into the cache and end; no model is needed"
    )
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="run the programs that the model writes for HumanEval and MBPP; there is no sandbox",
    )
    parser.add_argument(
        "--chat-template",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="pass prompts through the tokenizer's chat template (default: in zero-shot only)",
    )
    parser.add_argument(
        "--paper",
        choices=(*MODELS, "none"),
        help="the model of the paper whose scores go below the table (default: by the first model's architecture)",
    )
    parser.add_argument(
        "--local-data",
        type=Path,
        metavar="DIR",
        help="read DIR/TASK/SPLIT.jsonl in place of the hub's data sets, for each task of lm-eval",
    )
    parser.add_argument("--device", help="cuda, cuda:1, cpu, ... (default: cuda where there is one)")
    parser.add_argument("--dtype", default="auto", help="of the weights, as transformers names it (default: as saved)")
    parser.add_argument("--batch-size", type=int, default=8, help="requests at once (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="the first N questions of each task only, to try it")
    parser.add_argument("--max-gen-toks", type=int, metavar="N", help="shorter answers than the tasks allow, to try it")
    parser.add_argument("--overwrite", action="store_true", help="run again what is there")
    print(evaluate(Request(**vars(parser.parse_args()))), end="")
