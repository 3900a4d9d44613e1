"""Files that others read: whole or not there, and an error that a user can mend where they cannot be written."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_remit.errors import UserError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write ``content`` (text in UTF-8) beside its place and rename it: a reader never sees half a file.

    Raises OSError.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


@contextmanager
def new_file(path: Path) -> Iterator[Any]:
    """A binary file to write into; it gets the name ``path`` once its bytes are on disk.

    On an error nothing is left behind, and a file that had the name keeps it.

    Raises:
        OSError: the file cannot be written.
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
    """Make the names in ``folder`` durable.

    Some network file systems cannot sync a folder: there a rename is all that they give.
    """
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
def unwritable(found: str, remedy: str) -> Iterator[None]:
    """An OSError inside becomes a UserError: ``found``, the error, ``remedy``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{found} ({error}); {remedy}") from error
