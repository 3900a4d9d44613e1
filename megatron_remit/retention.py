"""Which checkpoints of a run stay: the newest ones, and with ``--save-retain-interval`` one every so many steps.

Megatron keeps the newest alone: if that one is damaged, the run is back at the last of the others. Here the last few
stay. A checkpoint is removed only once a newer one is whole and named in the tracker file, and its folder first gets
another name: a process that is killed meanwhile leaves no half checkpoint under the name of a whole one.
"""

import argparse
import functools
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FOLDER = re.compile(r"iter_(\d{7,})")
# Written last, once all ranks have written their files.
_COMPLETE = ".metadata"
_REMOVED = ".removed-"


def to_remove(save: Path, keep_last: int, interval: int) -> list[Path]:
    """The checkpoints in ``save`` that go, oldest first.

    Args:
        keep_last: how many of the newest whole checkpoints stay.
        interval: steps; every checkpoint of a multiple of them stays.
    """
    newest = _tracked(save)
    folders = {int(found[1]): save / name for name in os.listdir(save) if (found := _FOLDER.fullmatch(name))}
    # What is newer than the tracker says is being written, or was when its run ended. A link is somebody's own.
    steps = sorted(step for step, folder in folders.items() if step <= newest and not folder.is_symlink())
    whole = [step for step in steps if (folders[step] / _COMPLETE).is_file()]
    kept = {*whole[-keep_last:], newest, *(step for step in whole if step % interval == 0)}
    return [folders[step] for step in steps if step not in kept]


def _tracked(save: Path) -> int:
    """The step of the last whole checkpoint, 0 if there is none."""
    try:
        text = (save / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return 0
    return int(text) if text.isdecimal() else 0


def prune(save: Path, keep_last: int, interval: int) -> list[int]:
    """Remove what :func:`to_remove` names, and what a killed process left of it; the steps of what was removed.

    Any number of processes may do so at once.
    """
    removed = []
    try:
        for folder in to_remove(save, keep_last, interval):
            hidden = save / f"{_REMOVED}{folder.name}"
            try:
                os.rename(folder, hidden)
            except FileNotFoundError:
                continue  # by another process
            removed.append(int(folder.name.removeprefix("iter_")))
        for hidden in save.glob(f"{_REMOVED}*"):
            shutil.rmtree(hidden, ignore_errors=True)
    except OSError as error:
        print(f"note: old checkpoints in {save} were not removed ({error})", flush=True)
    return removed


def keeping_more(delete: Callable[..., Any], run_arguments: Callable[[], argparse.Namespace]) -> Callable[..., None]:
    """Stands for Megatron's ``delete``, which removes the last checkpoint but one when a save is complete, unless its
    step is a multiple of ``--save-retain-interval``. At that moment, in the same thread or process, more of them stay.
    """

    @functools.wraps(delete)
    def call(save: str, *rest: Any, **named: Any) -> None:
        args = run_arguments()
        for step in prune(Path(save), args.save_keep_last, args.save_retain_interval):
            print(f"  removed the checkpoint of iteration {step:7d} in {save}", flush=True)

    return call
