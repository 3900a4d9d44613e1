"""Files that others read: whole or not there, and an error that a user can mend where they cannot be written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_remit.errors import UserError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write ``content`` (text in UTF-8) beside its place and rename it: a reader never sees half a file.

    Raises OSError.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


@contextmanager
def unwritable(found: str, remedy: str) -> Iterator[None]:
    """An OSError inside becomes a UserError: ``found``, the error, ``remedy``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{found} ({error}); {remedy}") from error
