"""The key of a row, and the table that finds the row of a key.

A key follows from what the reference reads, and from nothing that depends on where or when it is read.

Shape suffixes: N rows, sorted by key; S tokens of a row.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy

Key = tuple[int, int]
"""A 128-bit hash as two unsigned 64-bit numbers, the high one first."""

KEY_BYTES = 16

Columns = dict[str, numpy.ndarray]
COLUMNS = {"high": numpy.uint64, "low": numpy.uint64, "shard": numpy.uint32, "row": numpy.uint32, "check": numpy.uint32}
"""The columns of a :class:`KeyTable`: the halves of the key, the number of the shard, the row in it, its CRC-32."""
BYTES_PER_ROW = sum(numpy.dtype(dtype).itemsize for dtype in COLUMNS.values())


def row_key(sample: dict[str, Any], reset_position_ids: bool, reset_attention_mask: bool) -> Key:
    """BLAKE2b-128 of a sample of Megatron's GPT dataset (``tokens``, ``labels`` [s] int64 and the masks).

    The hash covers s + 1 tokens: the s that are read and the label of the last, as 32-bit integers. With document masks
    it covers the borders as well: GPTDataset puts token 0 in the place of padding after it has drawn the borders, so
    the tokens alone do not show them. The loss mask changes no NLL and is left out.
    """
    row = numpy.append(sample["tokens"].numpy(), sample["labels"][-1].item()).astype("<u4")
    hashed = hashlib.blake2b(row.tobytes(), digest_size=KEY_BYTES)
    if reset_position_ids:
        hashed.update(b"positions" + sample["position_ids"].numpy().astype("<u4").tobytes())
    if reset_attention_mask:
        hashed.update(b"borders" + numpy.packbits(_borders_S(sample)).tobytes())
    digest = hashed.digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _borders_S(sample: dict[str, Any]) -> numpy.ndarray:
    """True where a position does not see the one before it, [s - 1]: the same for masks, which are True where attention
    is cut, and for the starts of packed documents (``cu_seqlens``)."""
    if "cu_seqlens" not in sample:
        return sample["attention_mask"][0].diagonal(-1).numpy()
    starts = sample["cu_seqlens"].numpy()
    borders_S = numpy.zeros(len(sample["tokens"]) - 1, dtype=bool)
    borders_S[starts[(starts > 0) & (starts < len(sample["tokens"]))] - 1] = True
    return borders_S


def key_bytes(key: Key) -> bytes:
    """The 16 bytes of the hash."""
    return key[0].to_bytes(8, "little") + key[1].to_bytes(8, "little")


@dataclass(frozen=True)
class Place:
    """Where a row lies, and the CRC-32 of its key and NLL bytes."""

    shard: int
    row: int
    check: int


class KeyTable:
    """A table of rows, sorted by key. A key may occur more than once: several jobs may score the same row."""

    def __init__(self, columns: Columns) -> None:
        """``columns``: those of :data:`COLUMNS`, each [n], in the order of the keys."""
        self.columns = columns

    @classmethod
    def sorted_from(cls, parts: Iterable[Columns], rows: int) -> "KeyTable":
        """The ``rows`` rows of all ``parts`` in memory, which holds one part at a time in addition.

        Among rows with the same key, that of the earliest part comes first.
        """
        columns = {name: numpy.empty(rows, dtype) for name, dtype in COLUMNS.items()}
        start = 0
        for part in parts:
            end = start + len(part["high"])
            for name, column in columns.items():
                column[start:end] = part[name]
            start = end
        order_N = _order(columns["high"], columns["low"])
        for name in columns:
            columns[name] = columns[name][order_N]
        return cls(columns)

    def __len__(self) -> int:
        return len(self.columns["high"])

    def whole(self) -> "KeyTable":
        """All rows in memory: this table itself."""
        return self

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


def _order(high_N: numpy.ndarray, low_N: numpy.ndarray) -> numpy.ndarray:
    """The order by (high, low). Two keys hardly ever share their high half, so one sort is nearly always enough."""
    order_N = numpy.argsort(high_N, kind="stable")
    sorted_N = high_N[order_N]
    if (sorted_N[1:] == sorted_N[:-1]).any():
        return numpy.lexsort((low_N, high_N))
    return order_N
