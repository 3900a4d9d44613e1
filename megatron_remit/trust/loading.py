"""The check of a checkpoint folder before anything of it is used: by its pickles, then by its digests."""

import argparse
import re
from pathlib import Path
from typing import Any

from megatron_remit.errors import UserError
from megatron_remit.trust import digests, pickles

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
_checked: set[tuple[Any, ...]] = set()


def add_trust_arguments(group: Any) -> None:
    """Add the flags of training, scoring and export that say how far a checkpoint is trusted."""
    group.add_argument(
        pickles.FLAG,
        action="store_true",
        help="Read checkpoints whose pickles name classes that no checkpoint of a run needs, and Megatron's legacy "
        "format. Such a checkpoint can run any code.",
    )
    group.add_argument(
        digests.FLAG,
        action="store_true",
        help="Do not compare the files of checkpoints with the digests next to them, which reads them once more.",
    )


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a checkpoint iteration but the lists of digests and unfinished ones."""
    lists = set(folder.glob(digests.LISTS))
    return sorted(path for path in folder.iterdir() if path.is_file() and path not in lists and path.suffix != ".tmp")


def check_iteration(folder: Path, skip_digests: bool = False, rank: int = 0, ranks: int = 1) -> None:
    """Check the checkpoint iteration in ``folder``; a second time in one process it is taken as checked.

    The first of ``ranks`` processes reads the pickles, and each reads its share of the files for their digests.

    Raises:
        UserError: it is damaged, or reading it could run code.
    """
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in checkpoint_files(folder)]
    key = (folder.resolve(), skip_digests, tuple(stats))
    if key in _checked:
        return
    if rank == 0:
        pickles.check_pickles(folder)
    if not skip_digests:
        digests.check_digests(folder, checkpoint_files(folder), rank, ranks)
    _checked.add(key)


def check_loaded(args: argparse.Namespace) -> None:
    """Check the checkpoints that Megatron's ``--load`` and ``--pretrained-checkpoint`` name in ``args``, if any.

    A folder without a checkpoint is none of this function's business. Raises UserError as :func:`check_iteration`.
    """
    pickles.trust_checkpoints(args.trust_checkpoint)
    for flag, root in (("--load", args.load), ("--pretrained-checkpoint", args.pretrained_checkpoint)):
        folder = None if root is None else _latest(Path(root), args.ckpt_step if flag == "--load" else None)
        if folder is None:
            continue
        try:
            check_iteration(folder, args.skip_digests, args.rank, args.world_size)
        except UserError as error:
            raise UserError(f"{flag} {root}: {error}") from None


def iteration_name(root: Path, iteration: int | None) -> str | None:
    """The name of the folder in ``root`` of ``iteration``, or without one of that which the tracker file names; None if
    there is no tracker file.

    Raises UserError: the tracker names none. Megatron ends with exit status 0 there.
    """
    tracker = root / TRACKER
    if iteration is None:
        if not tracker.is_file():
            return None
        latest = tracker.read_text(encoding="utf-8", errors="replace").strip()
        if latest == RELEASE:
            return RELEASE
        if not re.fullmatch(r"[0-9]{1,18}", latest):
            raise UserError(f"{tracker}: found {latest[:40]!r}; expected an iteration number or {RELEASE!r}")
        iteration = int(latest)
    return f"iter_{iteration:07d}"


def _latest(root: Path, iteration: int | None) -> Path | None:
    """The folder of the iteration that Megatron will read; None if there is none. Raises as :func:`iteration_name`."""
    name = iteration_name(root, iteration or None)  # --ckpt-step 0 is Megatron's word for the latest
    return root / name if name is not None and (root / name).is_dir() else None
