"""The actions of ``tools/score_store.py``."""

from pathlib import Path

from megatron_remit.errors import UserError
from megatron_remit.programs.corpus_keys import corpus_keys
from megatron_remit.score_store.info import info
from megatron_remit.score_store.maintain import merge, prune, verify


def run_command(action: str, store: Path, flags: list[str]) -> None:
    """Do ``action`` and print what came of it; ``flags`` describe the training run that ``info`` and ``prune`` look at.

    Raises:
        UserError: no store, a damaged one (``verify``, ``merge``), or bad flags.
    """
    if action == "info":
        print(info(store, corpus_keys(flags) if flags else None))
    elif action == "verify":
        _verify(store)
    elif action == "merge":
        before, after = merge(store)
        print(f"{store}: {before} shards, now {after}")
    else:
        done = prune(store, corpus_keys(flags) if flags else None)
        print("\n".join(done) if done else f"{store}: nothing to prune")


def _verify(store: Path) -> None:
    check = verify(store)
    print(
        f"{store}: {check.rows} sound rows in {check.shards} shards, {check.duplicates} of them twice, "
        f"{len(check.leftovers)} files left over by killed writers"
    )
    if check.problems:
        problems = "\n  ".join(check.problems)
        raise UserError(f"{store}: {len(check.problems)} problems\n  {problems}\nrun 'prune', then score again")
