"""Look at a score store and keep it in order: info, verify, merge, prune.

    %(prog)s info DIR                     what is in it
    %(prog)s info DIR -- <run's flags>    also how many rows of that training run it covers
    %(prog)s verify DIR                   read it whole, compare every checksum
    %(prog)s merge DIR                    fewer, larger shards; no row twice
    %(prog)s prune DIR                    drop what is damaged
    %(prog)s prune DIR -- <run's flags>   also drop the rows that the run does not read

A run's flags: those of its training command, without the parallel layout.
"""

import argparse
import sys
from pathlib import Path

from megatron_remit.errors import UserError
from megatron_remit.score_store.info import info
from megatron_remit.score_store.maintain import merge, prune, verify


def main() -> None:
    """Parse the command line, do the action and print what came of it.

    Raises:
        UserError: no store, a damaged one (``verify``, ``merge``), or bad flags of a run.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("info", "verify", "merge", "prune"))
    parser.add_argument("store", type=Path)
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, flags = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    if flags and options.action not in ("info", "prune"):
        parser.error(f"{options.action} takes no flags of a training run")
    keys = None
    if flags:
        # Imported late: what needs no flags of a run need not wait for Megatron.
        from megatron_remit.programs.score_corpus import corpus_keys

        keys = corpus_keys(flags)
    if options.action == "info":
        print(info(options.store, keys))
    elif options.action == "verify":
        _verify(options.store)
    elif options.action == "merge":
        before, after = merge(options.store)
        print(f"{options.store}: {before} shards, now {after}")
    else:
        done = prune(options.store, keys)
        print("\n".join(done) if done else f"{options.store}: nothing to prune")


def _verify(store: Path) -> None:
    check = verify(store)
    print(
        f"{store}: {check.rows} sound rows in {check.shards} shards, {check.duplicates} of them twice, "
        f"{len(check.leftovers)} files left over by killed writers"
    )
    if check.problems:
        problems = "\n  ".join(check.problems)
        raise UserError(f"{store}: {len(check.problems)} problems\n  {problems}\nrun 'prune', then score again")
