"""Files of a store: safetensors files that appear whole or not at all, and whose arrays are found by their offset.

The safetensors package does not write them, because a store needs the bytes on disk before the name appears, no second
copy of them in memory, and an error that says what a full disk means. Any safetensors reader opens them.
"""

import errno
import fcntl
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from megatron_remit import artifacts
from megatron_remit.errors import UserError

# What safetensors calls the dtypes that a store uses.
_NAMES = {"float16": "F16", "float32": "F32", "uint32": "U32", "uint64": "U64"}
_DTYPES = {name: numpy.dtype(dtype).newbyteorder("<") for dtype, name in _NAMES.items()}
_LONGEST_HEADER = 100_000_000  # bytes, as in the safetensors package
_LOCK = "lock"


class DamagedFile(UserError):
    """A store's file is not what was written. The message names it."""


class UnwritableFile(UserError):
    """A file of a store could not be written: full disk, spent quota or missing rights."""


@dataclass(frozen=True)
class Array:
    """Where an array lies in its file."""

    dtype: numpy.dtype
    shape: tuple[int, ...]
    offset: int
    """First byte, from the start of the file."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself."""

    arrays: dict[str, Array]
    metadata: dict[str, str]
    size: int
    """Bytes of the whole file."""


@contextmanager
def new_file(path: Path) -> Iterator[Any]:
    """:func:`megatron_remit.artifacts.new_file`, with an error that says what it means for the store.

    Raises:
        UnwritableFile: the disk is full, the quota is spent or the file may not be written. Nothing is left behind.
    """
    try:
        with artifacts.new_file(path) as file:
            yield file
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free space" if full else "fix the cause"
        raise UnwritableFile(
            f"{path}: cannot be written ({os.strerror(error.errno or 0)}); the store is whole without it: "
            f"{advice} and start again"
        ) from error


def write_arrays(path: Path, arrays: dict[str, numpy.ndarray], metadata: dict[str, str], checked: set[str]) -> int:
    """Write a safetensors file whole or not at all; ``metadata`` gains the CRC-32 of the ``checked`` arrays' bytes.

    The arrays lie in the order given. Give the wider dtypes first: then each array is aligned. Returns the size of the
    file in bytes.

    Raises:
        UnwritableFile: as :func:`new_file`.
    """
    entries, end = {}, 0
    for name, array in arrays.items():
        entries[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    with new_file(path) as file:
        file.write(_encode(entries, metadata, 0))
        checksum = 0
        for name, array in arrays.items():
            payload = memoryview(numpy.ascontiguousarray(array)).cast("B") if array.size else b""
            if name in checked:
                checksum = zlib.crc32(payload, checksum)
            file.write(payload)
        size = file.tell()
        # The checksum is known only now; its text has a fixed width, so the header keeps its length.
        file.seek(0)
        file.write(_encode(entries, metadata, checksum))
    return size


def _encode(entries: dict[str, Any], metadata: dict[str, str], checksum: int) -> bytes:
    text = json.dumps({"__metadata__": metadata | {"checksum": f"{checksum:08x}"}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_header(path: Path) -> Header:
    """The header of a safetensors file.

    Raises:
        DamagedFile: the file is not one, or its size is not what the header says.
        FileNotFoundError: there is no such file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size, _LONGEST_HEADER):
            raise DamagedFile(f"{path}: damaged, its first bytes are no safetensors header ({size} bytes in all)")
        text = file.read(length)
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__")
        arrays = {
            name: Array(_DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in entries.items()
        }
        expected = 8 + length + max(entry["data_offsets"][1] for entry in entries.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"{path}: damaged, its header cannot be read ({type(error).__name__}: {error})") from None
    if size != expected:
        raise DamagedFile(f"{path}: damaged, it has {size} bytes, its header expects {expected}")
    return Header(arrays, metadata, size)


def read_array(path: Path, array: Array) -> numpy.ndarray:
    """The array, read into memory: where the file is cut short meanwhile, a map would kill the process.

    Raises:
        DamagedFile: the file ends before the array does.
    """
    values = numpy.fromfile(path, dtype=array.dtype, count=math.prod(array.shape), offset=array.offset)
    if values.size != math.prod(array.shape):
        raise DamagedFile(f"{path}: damaged, it was cut short while it was read")
    return values.reshape(array.shape)


def check_arrays(path: Path, header: Header, names: list[str]) -> dict[str, numpy.ndarray]:
    """The named arrays, in memory. They must be those that the header's checksum covers, in the order of the file.

    Raises:
        DamagedFile: an array is missing, or the bytes are not those that were written.
    """
    arrays, checksum = {}, 0
    for name in names:
        if name not in header.arrays:
            raise DamagedFile(f"{path}: damaged, it holds no array {name!r}")
        arrays[name] = read_array(path, header.arrays[name])
        checksum = zlib.crc32(memoryview(arrays[name]).cast("B") if arrays[name].size else b"", checksum)
    if header.metadata.get("checksum") != f"{checksum:08x}":
        raise DamagedFile(
            f"{path}: damaged, the checksum of its tables is {checksum:08x}, expected {header.metadata.get('checksum')}"
        )
    return arrays


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time is inside, of all that use this store. A killed process leaves no lock behind.

    On a file system without locks nothing is locked: several processes may then do the same work.
    """
    with (folder / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
