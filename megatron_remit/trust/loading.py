"""The check of a checkpoint folder before anything of it is used: by its pickles, then by its digests."""

import argparse
import re
from pathlib import Path
from typing import Any

from megatron_remit.errors import DOWNLOAD, UserError
from megatron_remit.trust import digests, pickles

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
_MANIFEST = "integrity.json"
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

    A folder without a checkpoint is the start of a new run, unless the run takes its model from it.

    Raises:
        UserError: as :func:`check_iteration`; or no checkpoint is there, and one is needed or something else is there.
    """
    pickles.trust_checkpoints(args.trust_checkpoint)
    # Without a checkpoint in --load Megatron takes the other, and without either random weights.
    needed = args.pretrained_checkpoint is None and (
        args.finetune or (args.use_checkpoint_args and args.num_layers is None)
    )
    for flag, root in (("--load", args.load), ("--pretrained-checkpoint", args.pretrained_checkpoint)):
        if root is None:
            continue
        # --ckpt-step 0 is Megatron's word for the latest.
        name = iteration_name(Path(root), (args.ckpt_step or None) if flag == "--load" else None)
        if name is None:
            _check_may_be_empty(flag, Path(root), needed)
            continue
        try:
            folder = existing(Path(root) / name)
            check_iteration(folder, args.skip_digests, args.rank, args.world_size)
        except UserError as error:
            raise UserError(f"{flag} {root}: {error}") from None
        if args.verify_integrity and not (folder / _MANIFEST).is_file():
            raise UserError(
                f"--verify-integrity: {folder} has no {_MANIFEST}, as it was saved without the flag; leave it out: the "
                f"digests next to a checkpoint ({digests.LISTS}) are compared without it"
            )


def _check_may_be_empty(flag: str, root: Path, needed: bool) -> None:
    """Refuse a place that never holds a checkpoint, and one without a checkpoint where the run ``needed`` it."""
    expected = f"expected a Megatron checkpoint, with {TRACKER}: give what tools/import_hf.py or a run's --save wrote"
    if root.exists() and not root.is_dir():
        raise UserError(f"{flag} {root}: is a file; {expected}")
    if (root / "config.json").is_file() and not (root / TRACKER).exists():
        raise UserError(
            f"{flag} {root}: is a Hugging Face model folder, with config.json; expected a Megatron checkpoint: make "
            f"one with tools/import_hf.py --hf {root} --out DIR, and give DIR"
        )
    if needed:
        found = f"holds no checkpoint ({TRACKER} is not there)" if root.is_dir() else "no such folder"
        raise UserError(f"{flag} {root}: {found}; {expected}; {DOWNLOAD}, and imported from DIR")


def iteration_name(root: Path, iteration: int | None) -> str | None:
    """The name of the folder in ``root`` of ``iteration``, or without one of that which the tracker file names; None if
    there is no tracker file.

    Raises UserError: the tracker names none. Megatron ends with exit status 0 there.
    """
    tracker = root / TRACKER
    if iteration is None:
        if not tracker.exists():
            return None
        if not tracker.is_file():
            raise UserError(f"{tracker}: is no file; expected one that holds an iteration number or {RELEASE!r}")
        latest = tracker.read_text(encoding="utf-8", errors="replace").strip()
        if latest == RELEASE:
            return RELEASE
        if not re.fullmatch(r"[0-9]{1,18}", latest):
            raise UserError(f"{tracker}: found {latest[:40]!r}; expected an iteration number or {RELEASE!r}")
        iteration = int(latest)
    return f"iter_{iteration:07d}"


def existing(folder: Path) -> Path:
    """``folder``, that of a checkpoint iteration. Raises UserError if it is not there: names those that are."""
    if not folder.is_dir():
        present = sorted(entry.name for entry in folder.parent.glob("iter_*"))
        raise UserError(f"{folder}: no such checkpoint; the folder holds {', '.join(present) or 'none'}")
    return folder
