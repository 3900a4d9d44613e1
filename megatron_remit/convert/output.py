"""Where a conversion writes: a folder of its own, apart from what it reads, whole or not there.

The folder holds a list of its files with their sizes and digests, ``remit_conversion.json``. --overwrite replaces
nothing but a folder that still is what this list says: not a model that somebody trained or downloaded, not one that a
training run has saved into.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from megatron_remit import scratch
from megatron_remit.artifacts import unwritable
from megatron_remit.convert.hf_io import read_json, write_json
from megatron_remit.errors import UserError
from megatron_remit.trust import digests

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
    for place in _behind_links(folder) if out.exists() else ():
        if _holds(out, place):
            raise UserError(f"--out {out} holds what {place} leads to: choose another --out")


def _behind_links(folder: Path) -> Iterator[Path]:
    """The links to files in ``folder``, and the folders there; links to folders are entered, each folder once."""
    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        whole = os.path.realpath(path)
        if whole in seen:
            folders.clear()
            continue
        seen.add(whole)
        yield Path(path)
        yield from (file for file in (Path(path, name) for name in files) if file.is_symlink())


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
    changed = next(_changed(out, listed), None)
    if changed is not None:
        raise UserError(f"{out / changed} is not as the {command} wrote it: {remedy}")


def _changed(out: Path, listed: Mapping[str, Any]) -> Iterator[str]:
    """The files of ``out`` that are not as ``listed``: first by their sizes, then by their digests."""
    found, sizes, known = _files(out), listed.get("files"), listed.get("sha256")
    yield from (name for name, size in found.items() if not isinstance(sizes, dict) or sizes.get(name) != size)
    if known is None:  # written by an earlier version
        known = _weights(out)
    for name in found:
        if not isinstance(known, dict) or (name in known and digests.digest(out / name) != known[name]):
            yield name


def _weights(folder: Path) -> dict[str, str]:
    """The digests that the lists next to the weights hold, by the file's path in ``folder``."""
    places = sorted({path.parent for path in folder.rglob(digests.LISTS)})
    return {
        (place / name).relative_to(folder).as_posix(): known
        for place in places
        for name, (known, _) in digests.listed(place).items()
    }


def _files(folder: Path) -> dict[str, int]:
    """Every file of the folder but the list: its path in the folder, and its bytes (-1 for a link)."""
    found = {}
    for path, folders, files in os.walk(folder):
        for file in (Path(path, name) for name in (*folders, *files)):
            if file.is_symlink() or not file.is_dir():
                found[file.relative_to(folder).as_posix()] = -1 if file.is_symlink() else file.stat().st_size
    found.pop(LIST, None)
    return dict(sorted(found.items()))


def _contents(folder: Path) -> dict[str, dict[str, Any]]:
    """The size and the SHA-256 of every file of the folder; the digest of weights as their list has it."""
    sizes, weights = _files(folder), _weights(folder)
    return {"files": sizes, "sha256": {name: weights.get(name) or digests.digest(folder / name) for name in sizes}}


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
            write_json(temporary / LIST, {"command": command, **_contents(temporary)})
            _change_places(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _change_places(temporary: Path, place: Path) -> None:
    """Put ``temporary`` in the place of ``place``, whose old folder comes back if that fails. Raises OSError."""
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
