"""The index file: one sorted table over all shards, 28 bytes per row, that says which row of which shard has a key.

``index.safetensors`` is a cache that any process can make anew from the shards. All processes of a node map it. It
lists the shards that it covers with their sizes, so that a shard that vanished or was cut short is noticed. Rows of
shards that came later are held in each reader's memory (reader.py).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy

from megatron_remit.score_store.files import DamagedFile, check_arrays, read_header, write_arrays
from megatron_remit.score_store.keys import COLUMNS, Columns, KeyTable
from megatron_remit.score_store.manifest import Identity
from megatron_remit.score_store.shard import Shard

INDEX = "index.safetensors"
_KIND = "megatron-remit score index 1"


@dataclass(frozen=True)
class Index:
    """The index file, mapped."""

    table: KeyTable
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
    first = [] if start is None else [start.columns]
    return KeyTable.sorted_from([*first, *_columns(shards)])


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
        columns = check_arrays(path, header, list(COLUMNS))
        shards = [(str(name), int(size)) for name, size in json.loads(header.metadata["shards"])]
    except (FileNotFoundError, DamagedFile, KeyError, ValueError):
        return None
    return Index(KeyTable(columns), shards)


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
