"""Which row of which shard has a key: one sorted table over all shards, 28 bytes a row.

``index.safetensors`` is a cache that any process can make anew from the shards, mapped by all processes of a node. It
lists the shards that it covers with their sizes, so a shard that vanished or was cut short is noticed. Shards that came
later are held in memory beside it.

Shape suffixes: N rows, sorted by key.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy

from megatron_remit.score_store.files import DamagedFile, check_arrays, read_header, write_arrays
from megatron_remit.score_store.keys import Key
from megatron_remit.score_store.manifest import Identity
from megatron_remit.score_store.shard import Shard

INDEX = "index.safetensors"
_KIND = "megatron-remit score index 1"
_COLUMNS = {
    "high": numpy.uint64,
    "low": numpy.uint64,
    "shard": numpy.uint32,
    "row": numpy.uint32,
    "check": numpy.uint32,
}
BYTES_A_ROW = sum(numpy.dtype(dtype).itemsize for dtype in _COLUMNS.values())


@dataclass(frozen=True)
class Place:
    """Where a row lies."""

    shard: int
    row: int
    check: int


class Run:
    """A sorted table of rows; a key may stand in it more than once (jobs that scored the same row)."""

    def __init__(self, columns: dict[str, numpy.ndarray]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["high"])

    def find(self, key: Key) -> Place | None:
        """The first row of ``key``."""
        high_N, low_N = self.columns["high"], self.columns["low"]
        at = int(numpy.searchsorted(high_N, numpy.uint64(key[0])))
        while at < len(high_N) and high_N[at] == key[0]:
            if low_N[at] == key[1]:
                return Place(*(int(self.columns[name][at]) for name in ("shard", "row", "check")))
            at += 1
        return None

    def first_of_key_N(self) -> numpy.ndarray:
        """True for the first row of each key."""
        first_N = numpy.ones(len(self), dtype=bool)
        high_N, low_N = self.columns["high"], self.columns["low"]
        first_N[1:] = (high_N[1:] != high_N[:-1]) | (low_N[1:] != low_N[:-1])
        return first_N


def empty_run() -> Run:
    """No rows."""
    return Run({name: numpy.empty(0, dtype) for name, dtype in _COLUMNS.items()})


def run_of_shards(shards: dict[int, Shard], start: Run | None = None) -> Run:
    """The rows of ``shards`` (by number), and those of ``start``, in one table in memory.

    Raises:
        DamagedFile: the tables of a shard are damaged.
    """
    parts: dict[str, list[numpy.ndarray]] = {name: [start.columns[name]] if start else [] for name in _COLUMNS}
    for number, shard in shards.items():
        tables = shard.tables()
        for name in ("high", "low", "check"):
            parts[name].append(numpy.asarray(tables[name]))
        parts["shard"].append(numpy.full(shard.rows, number, dtype=numpy.uint32))
        parts["row"].append(numpy.arange(shard.rows, dtype=numpy.uint32))
    columns = {}
    for name, dtype in _COLUMNS.items():
        columns[name] = numpy.concatenate(parts.pop(name)) if shards or start else numpy.empty(0, dtype)
    order_N = _order(columns["high"], columns["low"])
    for name in columns:
        columns[name] = columns[name][order_N]
    return Run(columns)


def _order(high_N: numpy.ndarray, low_N: numpy.ndarray) -> numpy.ndarray:
    """The order by (high, low). Two keys hardly ever share their high half, so one sort is nearly always enough."""
    order_N = numpy.argsort(high_N, kind="stable")
    sorted_N = high_N[order_N]
    if (sorted_N[1:] == sorted_N[:-1]).any():
        return numpy.lexsort((low_N, high_N))
    return order_N


@dataclass(frozen=True)
class Index:
    """The index file, mapped."""

    run: Run
    shards: list[tuple[str, int]]
    """Name and size in bytes of each shard, in the order of their numbers."""


def write_index(folder: Path, identity: Identity, run: Run, shards: list[tuple[str, int]]) -> None:
    """Replace the index file. ``run`` numbers ``shards`` in their order. Raises UserError as `new_file`."""
    metadata = {"kind": _KIND, "store": identity.digest(), "shards": json.dumps(shards)}
    write_arrays(folder / INDEX, run.columns, metadata, checked=set(_COLUMNS))


def read_index(folder: Path, identity: Identity) -> Index | None:
    """The index file, checked against its checksum; None if there is none, or one that is damaged or of another store
    (the shards then give a new one)."""
    path = folder / INDEX
    try:
        header = read_header(path)
        if header.metadata.get("kind") != _KIND or header.metadata.get("store") != identity.digest():
            return None
        columns = check_arrays(path, header, list(_COLUMNS))
        shards = [(str(name), int(size)) for name, size in json.loads(header.metadata["shards"])]
    except (FileNotFoundError, DamagedFile, KeyError, ValueError):
        return None
    return Index(Run(columns), shards)
