"""Look at a score store and keep it in order: info, verify, merge, prune.

    python tools/score_store.py info DIR                     what is in it
    python tools/score_store.py info DIR -- <run's flags>    also how many rows of that training run it covers
    python tools/score_store.py verify DIR                   read it whole, compare every checksum
    python tools/score_store.py merge DIR                    fewer, larger shards; no row twice
    python tools/score_store.py prune DIR                    drop what is damaged
    python tools/score_store.py prune DIR -- <run's flags>   also drop the rows that the run does not read

A run's flags: those of its training command, without the parallel layout.
"""

import argparse
import sys
from pathlib import Path

from megatron_remit.errors import cli


def main() -> None:
    """Parse the arguments and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("info", "verify", "merge", "prune"))
    parser.add_argument("store", type=Path)
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, flags = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    if flags and options.action not in ("info", "prune"):
        parser.error(f"{options.action} takes no flags of a training run")
    # Imported late: --help need not wait for torch.
    from megatron_remit.programs.score_store import run_command

    run_command(options.action, options.store, flags)


if __name__ == "__main__":
    cli(main)
