"""Names of what is written next to its target, with their owner in them, so that what a killed process left is found.

    NAME.tmp-PID-PLACE    being written
    NAME.old-PID-PLACE    moved aside while the new one takes its place

PID is the process, and PLACE the machine since its start and the set of processes that its numbers belong to (a
container has its own). On a file system that machines share, only what carries one's own PLACE is judged by whether its
process lives; what carries another is left alone for a week.
"""

import functools
import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

_SECONDS_FOR_OTHERS = 7 * 24 * 3600


def being_written(target: Path) -> Path:
    """Where this process writes what will be ``target``."""
    return _owned(target, "tmp")


def moved_aside(target: Path) -> Path:
    """Where this process puts an older ``target`` for the moment in which the new one takes its place."""
    return _owned(target, "old")


def _owned(target: Path, kind: str) -> Path:
    return target.with_name(f"{target.name}.{kind}-{os.getpid()}-{_place()}")


@functools.cache
def _place() -> str:
    known = [platform.node()]
    try:
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        known.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass  # not Linux: the machine's name has to do
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]


def left_behind(target: Path, kind: str) -> Iterator[tuple[Path, str]]:
    """What processes that are gone left of ``target``, each with the name of its owner, PID-PLACE."""
    name = re.compile(re.escape(f"{target.name}.{kind}-") + r"(\d+)(?:-([0-9a-f]{8}))?")
    if not target.parent.is_dir():
        return
    for path in sorted(target.parent.iterdir()):
        found = name.fullmatch(path.name)
        if found and not _has_owner(path, int(found.group(1)), found.group(2)):
            yield path, path.name.removeprefix(f"{target.name}.{kind}-")


def _has_owner(path: Path, process: int, place: str | None) -> bool:
    """Whether the process that ``path`` is named for lives, or may live elsewhere."""
    if place != _place():
        return time.time() - _last_change(path) < _SECONDS_FOR_OTHERS
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _last_change(path: Path) -> float:
    """When ``path``, or a file in it, was last written; now, if it vanishes meanwhile."""
    try:
        return max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")))
    except OSError:
        return time.time()


def clear(target: Path) -> None:
    """Remove what processes that are gone left of ``target``. Where they had moved it aside, it comes back."""
    for path, _ in left_behind(target, "tmp"):
        remove(path)
    for path, _ in left_behind(target, "old"):
        if target.exists() or target.is_symlink():
            remove(path)
        else:
            os.rename(path, target)


def remove(path: Path) -> None:
    """Remove a file or a folder, whatever of it is still there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
