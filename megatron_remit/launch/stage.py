"""Copies to a node's own disk: ``python -m megatron_remit.launch.stage STAGE KIND SOURCE TARGET ...``, one task per
node under srun. ``launch/staging.py`` says what is copied where.

A copy appears whole or not at all. Jobs that share a node make each copy once: the others wait at a lock, which the
kernel drops if its holder dies.
"""

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_remit import scratch
from megatron_remit.artifacts import unwritable
from megatron_remit.data.corpus_files import corpus_file
from megatron_remit.errors import UserError, cli
from megatron_remit.launch.slurm import node_name
from megatron_remit.launch.staging import CORPUS, FOLDER, INDEX, Copy

_ROOM_FOR_OTHERS = 1 << 30
"""Bytes that stay free: what compiles and logs on the node needs some."""
_COPIED = {CORPUS: (".bin", ".idx", ".json"), INDEX: (".idx",)}


def stage(folder: Path, copies: Sequence[Copy]) -> None:
    """Make those of ``copies`` that are not there, in ``folder``.

    Raises:
        UserError: ``folder`` cannot be written or has no room, or a source cannot be read; names the node.
    """
    with unwritable(f"STAGE={folder} on {node_name()}: no copies", "give a folder on each node's own disk"):
        folder.mkdir(parents=True, exist_ok=True)
        for copy in copies:
            with _locked(Path(f"{copy.target}.lock")):
                if not _is_there(copy):
                    _make(folder, copy)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_there(copy: Copy) -> bool:
    # Of a corpus the index comes last.
    return Path(copy.target).is_dir() if copy.kind == FOLDER else corpus_file(copy.target, ".idx").is_file()


def _make(folder: Path, copy: Copy) -> None:
    target = Path(copy.target)
    begun, needed = time.monotonic(), _bytes(folder, copy)
    free = shutil.disk_usage(folder).free
    if needed + _ROOM_FOR_OTHERS > free:
        raise UserError(
            f"STAGE={folder} on {node_name()}: {copy.source} needs {needed / 1e9:.1f} GB, and 1 GB more shall "
            f"stay, but {free / 1e9:.1f} GB are free; delete older copies there, or name less in STAGE_WHAT"
        )
    scratch.clear(target)
    temporary = scratch.being_written(target)
    try:
        if copy.kind == FOLDER:
            shutil.copytree(copy.source, temporary)
            os.rename(temporary, target)
        else:
            _copy_corpus(copy, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    seconds = time.monotonic() - begun
    print(f"> {node_name()}: {needed / 1e9:.2f} GB of {copy.source} to {target} in {seconds:.0f} s", flush=True)


def _copy_corpus(copy: Copy, temporary: Path) -> None:
    temporary.mkdir()
    for suffix in (".bin", ".json", ".idx"):
        source, target = corpus_file(copy.source, suffix), corpus_file(copy.target, suffix)
        if not source.exists():
            continue  # a corpus of Megatron's own tool has no .json
        new = temporary / suffix[1:]
        if suffix in _COPIED[copy.kind]:
            shutil.copy2(source, new)
        else:
            new.symlink_to(source.resolve())
        os.replace(new, target)


def _bytes(folder: Path, copy: Copy) -> int:
    """How much is copied. Raises UserError: there is nothing at the source."""
    if copy.kind == FOLDER:
        files = [Path(inside, name) for inside, _, names in os.walk(copy.source) for name in names]
    else:
        files = [corpus_file(copy.source, suffix) for suffix in _COPIED[copy.kind]]
    there = [file for file in files if file.is_file()]
    if not there:
        raise UserError(
            f"STAGE={folder} on {node_name()}: {copy.source} is not there; is it on a file system that all nodes share?"
        )
    return sum(file.stat().st_size for file in there)


def main() -> None:
    """The program."""
    folder, *words = sys.argv[1:]
    stage(Path(folder), [Copy(*words[at : at + 3]) for at in range(0, len(words), 3)])


if __name__ == "__main__":
    cli(main)
