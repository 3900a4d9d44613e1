"""The three files of a corpus, PREFIX.bin, .idx and .json: what may be written where, all of them or none, and a number
that follows from what is in them.

Standard library only, so that a command can refuse a wrong path before it loads torch and Megatron.
"""

import argparse
import functools
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_remit import scratch
from megatron_remit.artifacts import check_writable, folder_for, signals_held, swap
from megatron_remit.errors import UserError

_INDEX_HEADER = b"MMIDIDX\x00\x00"
# Behind it: version, code of the tokens' dtype, sequences, document borders. Then a length (4 bytes) and a place (8)
# for each sequence, and 8 bytes for each border.
_INDEX_FIELDS = struct.Struct("<QBQQ")
_INDEX_VERSION = 1
_DTYPE_CODES = range(1, 9)
# What a digest reads of a file: blocks of so many bytes, at even distances.
_BLOCK = 16 << 10
_BLOCKS = 32


def corpus_file(prefix: Path | str, suffix: str) -> Path:
    """PREFIX with ``.bin``, ``.idx`` or ``.json`` behind it; a dot in PREFIX stays."""
    return Path(f"{prefix}{suffix}")


def corpus_prefix(text: str) -> Path:
    """The value of a flag that takes a prefix (an argparse type): no name of a folder."""
    if text.endswith(os.sep) or not Path(text).name:
        raise argparse.ArgumentTypeError(
            f"{text!r} names a folder; give the prefix of files, such as {Path(text, 'corpus')}"
        )
    return Path(text)


def check_paths(inputs: Sequence[Path], prefix: Path, overwrite: bool) -> None:
    """Whether ``inputs`` are there and the corpus ``prefix`` may be written. What killed processes left is put right.

    Raises:
        UserError: an input is missing or would be overwritten, ``prefix`` is a folder or lies where nothing can be
            written, or its files are there and ``overwrite`` is not set, or they are no corpus.
    """
    _put_in_order(prefix)
    outputs = {corpus_file(prefix, suffix).resolve() for suffix in (".bin", ".idx", ".json")}
    for path in inputs:
        if not path.is_file():
            found = "is a folder, expected a file" if path.is_dir() else "no such file"
            raise UserError(f"--input {path}: {found}")
        if path.resolve() in outputs:
            raise UserError(f"--input {path}: --output-prefix would overwrite it; choose another prefix")
    # Megatron makes a folder of the prefix's name for its cached sample order.
    if prefix.is_dir() and {entry.name for entry in prefix.iterdir()} != {"cache"}:
        raise UserError(f"--output-prefix {prefix}: is a folder; give the prefix of files, such as {prefix / 'corpus'}")
    there = [path for path in (corpus_file(prefix, suffix) for suffix in (".bin", ".idx", ".json")) if path.exists()]
    if there and not overwrite:
        raise UserError(
            f"--output-prefix {prefix}: {', '.join(map(str, there))} exist{'s' if len(there) == 1 else ''}; choose "
            "another prefix, or pass --overwrite to replace them"
        )
    for path in there:
        # Bare tokens have no mark of their own: they are told by the file next to them.
        if (len(there) == 1 and path.suffix == ".bin") or not _is_ours(path):
            raise UserError(f"{path} is no file of a corpus: --overwrite leaves it alone; choose another prefix")
    check_writable("--output-prefix", prefix, prefix.parent)


def _put_in_order(prefix: Path) -> None:
    """Remove what killed processes left of the corpus. What one that died among its renames had done is undone."""
    targets = [corpus_file(prefix, suffix) for suffix in (".bin", ".json", ".idx")]
    for target in targets:
        for left, _ in scratch.left_behind(target, "tmp"):
            scratch.remove(left)
    aside = {target: dict(_by_owner(target)) for target in targets}
    for owner in sorted({owner for olds in aside.values() for owner in olds}):
        tokens, manifest, index = (aside[target].get(owner) for target in targets)
        if index is not None and not targets[2].exists():
            # They were moved in the order index, manifest, tokens: a manifest beside moved tokens is the new corpus'.
            if tokens is not None and manifest is None:
                targets[1].unlink(missing_ok=True)
            for old, target in zip((tokens, manifest, index), targets, strict=True):
                if old is not None:
                    os.replace(old, target)
        else:
            for old in (tokens, manifest, index):
                if old is not None:
                    scratch.remove(old)


def _by_owner(target: Path) -> Iterator[tuple[str, Path]]:
    return ((owner, path) for path, owner in scratch.left_behind(target, "old"))


def check_pair(prefix: Path, overwrite: bool) -> None:
    """Whether the corpus ``prefix`` is there and may get a manifest. Raises UserError."""
    for suffix in (".bin", ".idx"):
        if not corpus_file(prefix, suffix).is_file():
            raise UserError(f"--prefix {prefix}: {corpus_file(prefix, suffix)}: no such file")
    manifest = corpus_file(prefix, ".json")
    if manifest.exists() and not overwrite:
        raise UserError(f"--prefix {prefix}: {manifest} exists; pass --overwrite to replace it")
    if manifest.exists() and not _is_ours(manifest):
        raise UserError(f"{manifest} is no manifest of a corpus: --overwrite leaves it alone; rename it")


def check_index(path: Path) -> None:
    """Whether ``path`` is a whole index. Megatron's reader finds it out half-way through, and prints a traceback when
    what it has begun is dropped.

    Raises:
        UserError: names the file, and what of it is wrong.
    """
    again = "; run tools/preprocess_corpus.py again, or copy the corpus anew"
    found = path.stat().st_size
    with path.open("rb") as file:
        mark, fields = file.read(len(_INDEX_HEADER)), file.read(_INDEX_FIELDS.size)
    if mark != _INDEX_HEADER:
        raise UserError(f"{path}: no index of a corpus, it begins with {mark!r} and not with {_INDEX_HEADER!r}{again}")
    if len(fields) < _INDEX_FIELDS.size:
        raise UserError(f"{path}: cut short, it has {found} bytes{again}")
    version, code, sequences, borders = _INDEX_FIELDS.unpack(fields)
    if version != _INDEX_VERSION or code not in _DTYPE_CODES:
        raise UserError(
            f"{path}: damaged, its head says version {version} and dtype {code}, expected {_INDEX_VERSION} and "
            f"{_DTYPE_CODES[0]} to {_DTYPE_CODES[-1]}{again}"
        )
    expected = len(_INDEX_HEADER) + _INDEX_FIELDS.size + 12 * sequences + 8 * borders
    if found < expected:
        raise UserError(f"{path}: cut short, it has {found} bytes, its head expects {expected}{again}")


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.suffix == ".idx":
        with path.open("rb") as file:
            return file.read(len(_INDEX_HEADER)) == _INDEX_HEADER
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            return False
        return isinstance(content, dict) and bool(content.keys() & {"tokenizer_fingerprint", "keep ratio"})
    return True


@contextmanager
def new_corpus(prefix: Path) -> Iterator[tuple[Path, Path, Path]]:
    """Temporary paths for the .bin, .json and .idx of the corpus ``prefix``; they get their names together at the end.

    An older corpus of that name is moved aside for that moment, and deleted once the new one stands. Megatron's cached
    sample order goes with it: it is found by the prefix, not by the content.

    Raises OSError. If it or the body raises, the older corpus is as before and nothing else is left.
    """
    targets = [corpus_file(prefix, suffix) for suffix in (".bin", ".json", ".idx")]
    temporaries = [scratch.being_written(path) for path in targets]
    with folder_for(prefix.parent):
        try:
            yield temporaries[0], temporaries[1], temporaries[2]
            for path in temporaries:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            with signals_held():
                shutil.rmtree(prefix / "cache", ignore_errors=True)
                swap(temporaries, targets)  # without an index Megatron sees no corpus
        finally:
            for path in temporaries:
                path.unlink(missing_ok=True)


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
