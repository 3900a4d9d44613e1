"""Where a conversion writes: a folder of its own, apart from what it reads, whole or not there.

The folder holds a list of its files, ``remit_conversion.json``. --overwrite replaces nothing but a folder that still is
what this list says: not a model that somebody trained or downloaded, not one that a training run has saved into.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from megatron_remit import scratch
from megatron_remit.artifacts import unwritable
from megatron_remit.convert.hf_io import read_json, write_json
from megatron_remit.errors import UserError

_WRITING = re.compile(r"I/O error|inline_container|os error|errno", re.IGNORECASE)

LIST = "remit_conversion.json"


def check_output(out: Path, overwrite: bool, command: str, inputs: dict[str, Path]) -> None:
    """Check that the folder ``out`` may be written by ``command`` ("import" or "export") from ``inputs``.

    ``inputs`` maps a flag to the folder that it names.

    Raises:
        UserError: ``out`` is an input, in one or around one, by its path or through links; or it exists, and is not to
            be overwritten or is not what this command wrote.
    """
    for flag, folder in inputs.items():
        _check_apart(out, flag, folder)
    scratch.clear(Path(os.path.realpath(out)))
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise UserError(f"{out} exists: choose another --out, or pass --overwrite to replace what an {command} wrote")
    if not out.is_dir():
        raise UserError(f"{out} is not a folder: --overwrite leaves it alone; choose another --out")
    if next(out.iterdir(), None) is not None:
        _check_written_by(command, out)


def _check_apart(out: Path, flag: str, folder: Path) -> None:
    if _holds(folder, out) or _holds(out, folder):
        raise UserError(f"--out {out} and {flag} {folder} overlap: choose an --out outside it")
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            link = Path(path, name)
            if link.is_symlink() and _holds(out, Path(os.path.realpath(link))):
                raise UserError(f"--out {out} holds the target of the link {link}: choose another --out")


def _holds(outer: Path, inner: Path) -> bool:
    """Whether ``inner`` is ``outer`` or lies in it; links and other names of the same folder do not hide it."""
    whole = Path(os.path.realpath(inner))
    if whole.is_relative_to(os.path.realpath(outer)):
        return True
    return outer.exists() and any(place.exists() and place.samefile(outer) for place in (whole, *whole.parents))


def _check_written_by(command: str, out: Path) -> None:
    remedy = "--overwrite leaves it alone; move it away or choose another --out"
    if not (out / LIST).is_file():
        raise UserError(f"{out} has no {LIST}, so no {command} of this program wrote it: {remedy}")
    listed = read_json(out / LIST)
    if listed.get("command") != command:
        raise UserError(f"{out} was written by {listed.get('command')!r}: {remedy}")
    found = _files(out)
    expected = listed.get("files")
    changed = sorted(
        name for name, size in found.items() if not isinstance(expected, dict) or expected.get(name) != size
    )
    if changed:
        raise UserError(f"{out / changed[0]} is not as the {command} wrote it: {remedy}")


def _files(folder: Path) -> dict[str, int]:
    """Every file of the folder but the list: its path in the folder, and its bytes (-1 for a link)."""
    found = {}
    for path, folders, files in os.walk(folder):
        for file in (Path(path, name) for name in (*folders, *files)):
            if file.is_symlink() or not file.is_dir():
                found[file.relative_to(folder).as_posix()] = -1 if file.is_symlink() else file.stat().st_size
    found.pop(LIST, None)
    return dict(sorted(found.items()))


@contextmanager
def _full_disk(out: Path) -> Iterator[None]:
    """The writers of torch and safetensors say it each in their own way."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, UserError) or not (isinstance(error, OSError) or _WRITING.search(str(error))):
            raise
        said = " ".join(str(error).split())
        raise UserError(f"{out} cannot be written ({said}); free space or choose another --out") from error


@contextmanager
def converted_folder(out: Path, command: str) -> Iterator[Path]:
    """A new folder next to ``out`` to write into; it takes the place of ``out`` at the end, removed if the body raises.

    What was at ``out`` is removed when the new folder stands there, and put back if that fails. If the process is
    killed between the two, the next conversion to ``out`` puts it back. ``check_output`` says whether it may be
    replaced.
    """
    place = Path(os.path.realpath(out))  # of a link to a folder, the folder is replaced
    scratch.clear(place)
    temporary = scratch.being_written(place)
    shutil.rmtree(temporary, ignore_errors=True)
    with unwritable(f"{out} cannot be made", "choose another --out"):
        temporary.mkdir(parents=True)
    try:
        with _full_disk(out):
            yield temporary
        write_json(temporary / LIST, {"command": command, "files": _files(temporary)})
        retired = scratch.moved_aside(place)
        existed = place.exists()
        if existed:
            os.rename(place, retired)
        try:
            os.rename(temporary, place)
        except OSError:
            if existed:
                os.rename(retired, place)
            raise
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
