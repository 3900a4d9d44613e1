"""Files and folders that others read: whole or not there; where they cannot be written, an error that a user can fix.

Every writer gives a temporary name next to the target and renames it at the end, so no reader ever sees half of it.
"""

import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

from megatron_remit import scratch
from megatron_remit.errors import UserError

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write ``content`` (text in UTF-8) next to its place and rename it. One process at a time may write ``path``.

    Raises OSError.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write into; it gets the name ``path`` once its bytes are on disk. Any number of processes may
    write ``path`` at once: the last to end wins.

    Raises OSError. Nothing is left behind if it or the body raises.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a new name in ``folder`` durable. Some network file systems cannot sync a folder: there the rename is all
    that they give."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


@contextmanager
def whole_files(*targets: Path) -> Iterator[list[Path]]:
    """Temporary paths, one per target, for writers that open files by name. At the end they are renamed to the targets
    in the order given; they are removed if the body raises, or later if the process is killed."""
    for target in targets:
        scratch.clear(target)
    temporaries = [scratch.being_written(path) for path in targets]
    try:
        yield temporaries
        for temporary, target in zip(temporaries, targets, strict=True):
            os.replace(temporary, target)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_set(*targets: Path) -> Iterator[list[Path]]:
    """As :func:`whole_files`, for files of one folder that belong together: all of them or none. The last, the head,
    goes first and comes last, so that it never stands beside files of another set.

    An older set is moved aside for that moment. It comes back if the body or the writing raises; after a kill with
    :func:`bring_back`, which this calls first.
    """
    bring_back(targets[-1])
    for target in targets:
        scratch.clear(target)
    temporaries = [scratch.being_written(path) for path in targets]
    try:
        yield temporaries
        with signals_held():
            swap(temporaries, targets)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def swap(temporaries: Sequence[Path], targets: Sequence[Path]) -> None:
    """Rename each temporary file to its target in the order given. What is there is moved aside first, the last target
    before all others, and removed once the new files stand.

    Raises OSError; the targets are then as before.
    """
    aside: list[tuple[Path, Path]] = []
    placed: list[Path] = []
    try:
        for target in reversed(targets):
            if target.exists():
                old = scratch.moved_aside(target)
                os.rename(target, old)
                aside.append((old, target))
        for temporary, target in zip(temporaries, targets, strict=True):
            os.rename(temporary, target)
            placed.append(target)
    except OSError:
        for target in placed:
            target.unlink()
        for old, target in reversed(aside):
            os.rename(old, target)
        raise
    for old, _ in reversed(aside):
        old.unlink()


def bring_back(head: Path) -> None:
    """Put the set of ``head`` right, if a killed process left it among the renames of :func:`whole_set`: the old set is
    whole again unless the new one is, of which then nothing old is left."""
    for old_head, owner in scratch.left_behind(head, "old"):
        end = f".old-{owner}"
        others = [path for path in head.parent.glob(f"*{end}") if path != old_head]
        for old in (*others, old_head):  # the head's last: it says that there is something to do
            if head.exists():
                scratch.remove(old)
            else:
                os.replace(old, old.with_name(old.name.removesuffix(end)))


@contextmanager
def folder_for(path: Path) -> Iterator[None]:
    """The folder ``path``, made with its parents if they are not there, that can be written. If the body raises, those
    that were made and are empty go again.

    Raises OSError.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        tempfile.TemporaryFile(dir=path).close()
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def check_writable(flag: str, target: Path, folder: Path | None = None) -> None:
    """Whether ``folder`` (default: ``target`` itself), in which what ``flag`` names is written, is or can be made.
    Nothing is made yet: a file is put into the folder, or the one that it will be made in, and goes at once.

    Raises:
        UserError: names the flag and ``target``.
    """
    there = target if folder is None else folder
    while not os.path.lexists(there):
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"{flag} {target} cannot be written ({error.strerror}); give a folder that this user may write"
        ) from None


@contextmanager
def unwritable(found: str, remedy: str) -> Iterator[None]:
    """An OSError inside becomes a UserError: ``found``, the error, ``remedy``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{found} ({error}); {remedy}") from error


@contextmanager
def removed_on_signal() -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP inside raise SystemExit, so that what the body has begun is removed on the way out; a
    second signal does not interrupt that. Then the process ends at once, with status 128 + n: what else it would wait
    for, such as threads and pools of processes, may have been interrupted anywhere. For the main thread of a program.
    """
    ended: list[int] = []

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        for other in _ENDING:
            signal.signal(other, signal.SIG_IGN)
        ended.append(number)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in _ENDING}
    try:
        yield
    finally:
        if ended:
            print(f"\nended by {signal.Signals(ended[0]).name}: nothing is left behind", file=sys.stderr, flush=True)
            os._exit(128 + ended[0])
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_held() -> Iterator[None]:
    """The same signals arrive after the body, not inside it: for a few renames that belong together."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
