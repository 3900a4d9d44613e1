"""Output folders that appear complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_remit.errors import UserError

# What a converted folder holds at its top; --overwrite replaces nothing else.
_OURS = ("latest_checkpointed_iteration.txt", "config.json")


def check_output(out: Path, overwrite: bool) -> None:
    """Raise :class:`UserError` if writing to ``out`` would replace something that must be kept."""
    if not out.exists():
        return
    if not overwrite:
        raise UserError(f"{out} exists: choose another --out, or pass --overwrite to replace it")
    empty = out.is_dir() and next(out.iterdir(), None) is None
    if not empty and not any((out / name).is_file() for name in _OURS):
        raise UserError(f"{out} holds neither a Megatron nor a Hugging Face checkpoint: --overwrite leaves it alone")


@contextmanager
def whole_folder(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """A new folder beside ``out`` to write into; renamed to ``out`` at the end, removed if the body raises."""
    check_output(out, overwrite)
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        retired = out.with_name(f"{out.name}.old-{os.getpid()}")
        if out.exists():
            os.rename(out, retired)
        os.rename(temporary, out)
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
