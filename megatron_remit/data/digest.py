"""Which corpus it is: a number that follows from its bytes, cheap enough for every start of a run."""

import functools
import hashlib
import os
from pathlib import Path

from megatron_remit.data.corpus_files import corpus_file

_BLOCK = 16 << 10
_BLOCKS = 32


def corpus_digest(prefix: str) -> str:
    """32 hexadecimal digits for PREFIX.bin and PREFIX.idx.

    Covers the sizes of both files, and of each 32 blocks of 16 KiB at even distances, the last at its end; a file of up
    to 512 KiB is covered wholly. So a corpus that was replaced, reordered, cut or extended has another digest, while a
    change of single tokens in a large one may not show.

    Raises OSError.
    """
    paths = [corpus_file(prefix, suffix) for suffix in (".bin", ".idx")]
    return _digest(tuple((str(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths))


@functools.cache
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """Of files by path, size in bytes, and time of the last change, which only tells one call from another."""
    hashed = hashlib.blake2b(digest_size=16)
    for path, size, _ in files:
        hashed.update(size.to_bytes(8, "little"))
        with Path(path).open("rb") as file:
            for offset in _offsets(size):
                file.seek(offset)
                hashed.update(file.read(_BLOCK))
    return hashed.hexdigest()


def _offsets(size: int) -> list[int]:
    if size <= _BLOCK * _BLOCKS:
        return list(range(0, size, _BLOCK))
    return [(size - _BLOCK) * block // (_BLOCKS - 1) for block in range(_BLOCKS)]
