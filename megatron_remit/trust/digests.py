"""SHA-256 of a folder's weights: written by who writes them, checked by who reads them.

A list is a file ``remit*.sha256`` next to the weights, in the format of ``sha256sum``, so that

    cd FOLDER && sha256sum --check --quiet remit*.sha256

does the same check without this program. SHA-256 because processors have instructions for it (0.7 s a GB on one core,
as fast as BLAKE2 there) and because no further package is needed. Each rank of a training run lists the files that it
wrote in a list of its own.

A weight file in the Hugging Face cache has no list, but its name: `snapshots/REVISION/FILE` is a link to
`blobs/SHA-256` (`blobs/SHA-1`, of git's kind, for small files). `hf download --local-dir` notes the same digests below
the folder, in `.cache/huggingface/download/FILE.metadata`, with the time.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from megatron_remit.artifacts import write_whole
from megatron_remit.errors import UserError, note

LISTS = "remit*.sha256"
FLAG = "--skip-digests"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\0]+)")


def digest(path: Path) -> str:
    """SHA-256 of the file's bytes as 64 hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_digests(folder: Path, files: Sequence[Path], rank: int | None = None) -> None:
    """Read ``files`` of ``folder`` back and write their list; ``rank`` is that of a training run. Raises OSError."""
    lines = [f"{digest(path)}  {path.name}\n" for path in files]
    write_whole(folder / ("remit.sha256" if rank is None else f"remit-{rank:05d}.sha256"), "".join(lines))


def check_digests(folder: Path, files: Sequence[Path], rank: int = 0, ranks: int = 1) -> None:
    """Compare ``files``, the weights in ``folder``, with the lists there.

    Each of ``ranks`` processes reads its share. Files that no list names are read unchecked; the first process says so
    in one line.

    Raises:
        UserError: a file is not what was written, or is missing; the message names it.
    """
    expected = listed(folder)
    unlisted = [path.name for path in files if path.name not in expected]
    if unlisted and rank == 0:
        what = (
            "no digests"
            if not expected
            else f"no digest of {unlisted[0]}" + (f" and {len(unlisted) - 1} more" if len(unlisted) > 1 else "")
        )
        note(f"{folder}: {what}; damage to its bytes would not be seen")
    for name in sorted(expected)[rank::ranks]:
        path, (known, listing) = folder / name, expected[name]
        if not path.is_file():
            raise UserError(f"{path}: no such file, though {listing.name} names it; copy the folder again")
        if digest(path) != known:
            raise UserError(
                f"{path}: its bytes are not those that were written (another SHA-256 than in {listing.name}): copy the "
                f"file again. If it was replaced on purpose, delete {listing}"
            )


def check_downloaded(files: Iterable[Path]) -> None:
    """Compare those of ``files`` whose SHA-256 the Hugging Face hub's client has kept: in the names of its cache, or in
    its notes in a folder that it has downloaded into.

    Raises:
        UserError: one is not what was downloaded; the message names it.
    """
    for path in files:
        noted = _noted_at_download(path)
        if noted is not None and digest(path) != noted:
            raise UserError(
                f"{path}: its bytes are not those that were downloaded (another SHA-256 than the hub's in "
                f"{_download_note(path)}): delete both and download the model again"
            )
        blob = Path(os.path.realpath(path))
        if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) and digest(blob) != blob.name:
            raise UserError(
                f"{path}: its bytes are not those that were downloaded (another SHA-256 than its name in the cache): "
                f"delete {blob} and download the model again"
            )


def _download_note(path: Path) -> Path:
    return path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"


def _noted_at_download(path: Path) -> str | None:
    """The SHA-256 that the hub gave for ``path`` when it was downloaded; None if there is none, or a later writer.

    As huggingface_hub reads its notes (1.x: _local_folder.py, ``read_download_metadata``): three lines, the hub's
    commit, the digest and the time; a file that is more than a second newer is another.
    """
    try:
        _, known, seconds = _download_note(path).read_text(encoding="utf-8").split()
        return known if _SHA256.fullmatch(known) and path.stat().st_mtime - 1 <= float(seconds) else None
    except (OSError, ValueError):
        return None


def listed(folder: Path) -> dict[str, tuple[str, Path]]:
    """For each file that is listed in ``folder``: its digest, and the list. Raises UserError: a list is damaged."""
    expected = {}
    for listing in sorted(folder.glob(LISTS)):
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            found = _LINE.fullmatch(line)
            if found is None:
                raise UserError(f"{listing}: damaged, found {line[:80]!r}; copy the folder again, or delete the file")
            expected[found.group(2)] = (found.group(1), listing)
    return expected
