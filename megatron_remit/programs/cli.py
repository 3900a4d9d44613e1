"""``megatron-remit COMMAND``: the console command that pip installs, and the table of its commands.

megatron-remit import --hf DIR --out DIR
torchrun --nproc-per-node 8 --no-python megatron-remit train <flags>
torchrun --nproc-per-node 8 -m megatron_remit.programs.cli train <flags>
"""

import argparse
import sys
from importlib import import_module
from typing import NamedTuple

from megatron_remit import errors


class Command(NamedTuple):
    """``function`` of ``megatron_remit.programs.module`` runs it; it reads ``sys.argv``."""

    module: str
    function: str
    help: str


COMMANDS = {
    "import": Command("commands", "import_command", "a Hugging Face model folder becomes a Megatron checkpoint"),
    "export": Command("commands", "export_command", "a Megatron checkpoint becomes a Hugging Face model folder"),
    "preprocess": Command("commands", "preprocess_command", "text (JSONL, parquet) becomes a tokenized corpus"),
    "manifest": Command("commands", "manifest_command", "check a corpus of another tool and write its manifest"),
    "score": Command("score_corpus", "main", "a corpus is scored into a store, ahead of training (under torchrun)"),
    "store": Command("score_store", "main", "look at a score store and keep it in order"),
    "select": Command("select_samples", "main", "the documents that a large model prefers most over a small one"),
    "compare": Command("commands", "compare_command", "models on the same text, and runs by their logs, as a page"),
    "evaluate": Command("evaluate", "main", "the paper's evaluation of exported models, as a table in its layout"),
    "plan": Command("commands", "plan_command", "check a run's settings, print its length, cost and memory per GPU"),
    "train": Command("train", "main", "train with Megatron's loop (under torchrun)"),
}


def main() -> None:
    """Run the command that the first argument names, as if the rest were the command line of its program."""
    parser = argparse.ArgumentParser(
        prog="megatron-remit",
        usage="%(prog)s COMMAND ...",
        description="ReMiT (RL-guided mid-training) on Megatron-Core.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<12}{command.help}" for name, command in COMMANDS.items())
        + "\n\n'%(prog)s COMMAND --help' lists the flags of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of those below")
    if len(sys.argv) < 2:
        parser.print_help()
        return
    name = parser.parse_args(sys.argv[1:2]).command
    # The commands name themselves in their usage by the last part of this.
    sys.argv = [f"megatron-remit {name}", *sys.argv[2:]]
    command = COMMANDS[name]
    # Imported late: the list of commands need not wait for torch and Megatron.
    getattr(import_module(f"megatron_remit.programs.{command.module}"), command.function)()


def run() -> None:
    """The console script: ``main``, whose errors end it with one line and exit status 2."""
    errors.cli(main)


if __name__ == "__main__":
    run()
