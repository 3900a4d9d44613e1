"""The index file: one sorted table over all shards, 28 bytes per row, that says which row of which shard has a key.

``index.safetensors`` is a cache that any process can make anew from the shards. A look-up takes a few plain reads, so
all processes of a node share the system's cache of the file. It is not mapped: a file that is cut short in its place
kills whoever has mapped it. It lists the shards that it covers with their sizes, so that a shard that vanished or was
cut short is noticed. Rows of shards that came later are held in each reader's memory (reader.py).

Shape suffixes: N rows of the file, B blocks of them, R rows of one block.
"""

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy

from megatron_remit.score_store.files import DamagedFile, Header, read_header, write_arrays
from megatron_remit.score_store.keys import COLUMNS, Columns, Key, KeyTable, Place
from megatron_remit.score_store.manifest import Identity
from megatron_remit.score_store.shard import Shard

INDEX = "index.safetensors"
_KIND = "megatron-remit score index 1"
_BLOCK_ROWS = 512
_READ_BYTES = 1 << 20  # a whole number of blocks of each column


class IndexTable:
    """The rows of the index file, sorted by key. In memory is the first key of each block."""

    def __init__(self, path: Path, header: Header) -> None:
        """Reads the file once and compares it with its checksum.

        Raises:
            DamagedFile: a column is missing, or the bytes are not those that were written.
            FileNotFoundError: the file is gone.
        """
        self._path, self._arrays = path, header.arrays
        self._file = path.open("rb", buffering=0)
        if any(header.arrays.get(name, None) is None for name in COLUMNS):
            raise DamagedFile(f"{path}: damaged, a column is missing")
        self._rows = header.arrays["high"].shape[0]
        checksum, first_of_block = 0, [numpy.empty(0, numpy.uint64)]
        for name in COLUMNS:
            rows = _READ_BYTES // header.arrays[name].dtype.itemsize
            for start in range(0, self._rows, rows):
                part_N = self._read(name, start, rows)
                checksum = zlib.crc32(memoryview(part_N).cast("B"), checksum)
                if name == "high":
                    first_of_block.append(part_N[::_BLOCK_ROWS].copy())
        if header.metadata.get("checksum") != f"{checksum:08x}":
            raise DamagedFile(f"{path}: damaged, its checksum is {checksum:08x}")
        self._first_B = numpy.concatenate(first_of_block)

    def __len__(self) -> int:
        return self._rows

    def _read(self, name: str, start: int, rows: int) -> numpy.ndarray:
        """At most ``rows`` rows of a column from ``start`` on. Raises DamagedFile where the file ends too early."""
        array = self._arrays[name]
        size = min(rows, self._rows - start) * array.dtype.itemsize
        content = os.pread(self._file.fileno(), size, array.offset + start * array.dtype.itemsize)
        if len(content) != size:
            raise DamagedFile(f"{self._path}: damaged, it was cut short after it was opened")
        return numpy.frombuffer(content, array.dtype)

    def find(self, key: Key) -> Place | None:
        """The first row of ``key``. Raises DamagedFile if the file was cut short."""
        high = numpy.uint64(key[0])
        start = max(int(numpy.searchsorted(self._first_B, high)) - 1, 0) * _BLOCK_ROWS
        for block in range(start, self._rows, _BLOCK_ROWS):
            high_R = self._read("high", block, _BLOCK_ROWS)
            for at in numpy.flatnonzero(high_R == high) + block:
                if self._read("low", int(at), 1)[0] == key[1]:
                    return Place(*(int(self._read(name, int(at), 1)[0]) for name in ("shard", "row", "check")))
            if high_R[-1] > high:
                break
        return None

    def whole(self) -> KeyTable:
        """All rows in memory. Raises DamagedFile if the file was cut short."""
        return KeyTable({name: self._read_whole(name) for name in COLUMNS})

    def _read_whole(self, name: str) -> numpy.ndarray:
        rows = _READ_BYTES // self._arrays[name].dtype.itemsize
        parts = [self._read(name, start, rows) for start in range(0, self._rows, rows)]
        return numpy.concatenate([numpy.empty(0, self._arrays[name].dtype), *parts])


@dataclass(frozen=True)
class Index:
    """The index file, open."""

    table: IndexTable
    shards: list[tuple[str, int]]
    """Name and size in bytes of each shard, in the order of their numbers."""

    @property
    def names(self) -> set[str]:
        """Names of the shards."""
        return {name for name, _ in self.shards}


def table_of_shards(shards: dict[int, Shard], start: KeyTable | None = None) -> KeyTable:
    """The rows of ``shards`` (by number), after those of ``start``, in one table in memory.

    Raises:
        DamagedFile: the key columns of a shard are damaged.
    """
    first, rows = ([], 0) if start is None else ([start.columns], len(start))
    return KeyTable.sorted_from(chain(first, _columns(shards)), rows + sum(shard.rows for shard in shards.values()))


def _columns(shards: dict[int, Shard]) -> Iterator[Columns]:
    for number, shard in shards.items():
        yield shard.key_columns() | {
            "shard": numpy.full(shard.rows, number, dtype=numpy.uint32),
            "row": numpy.arange(shard.rows, dtype=numpy.uint32),
        }


def read_index(folder: Path, identity: Identity) -> Index | None:
    """The index file, compared with its checksum.

    None if there is no index file, or if it is damaged or of another store: the shards then give a new one.
    """
    path = folder / INDEX
    try:
        header = read_header(path)
        if header.metadata.get("kind") != _KIND or header.metadata.get("store") != identity.digest():
            return None
        table = IndexTable(path, header)
        shards = [(str(name), int(size)) for name, size in json.loads(header.metadata["shards"])]
    except (FileNotFoundError, DamagedFile, KeyError, ValueError):
        return None
    return Index(table, shards)


def write_index(folder: Path, identity: Identity, names: set[str]) -> None:
    """Replace the index file by one for exactly the shards ``names``.

    Raises:
        FileNotFoundError: a shard is gone.
        UserError: a shard is damaged or of another store, or the file cannot be written.
    """
    shards = [Shard(folder / name, identity) for name in sorted(names)]
    table = table_of_shards(dict(enumerate(shards)))
    sizes = [(shard.path.name, shard.header.size) for shard in shards]
    metadata = {"kind": _KIND, "store": identity.digest(), "shards": json.dumps(sizes)}
    write_arrays(folder / INDEX, table.columns, metadata, checked=set(COLUMNS))
