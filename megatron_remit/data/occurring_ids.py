"""How often given token ids occur in a corpus. The answer is kept beside the corpus, so it is read through once.

PREFIX.ids.json holds the counts found so far with the size and time of PREFIX.bin; a corpus that was written anew is
counted anew.
"""

import contextlib
import json
from collections.abc import Collection
from pathlib import Path

import numpy
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_remit.artifacts import new_file

_CHUNK_TOKENS = 1 << 22


def count_ids(prefix: str, wanted: Collection[int]) -> dict[int, int]:
    """How often each of the ids ``wanted`` occurs in PREFIX.bin, which is read in pieces of 4M tokens.

    The counts are kept in PREFIX.ids.json where the folder can be written. Raises OSError if the corpus cannot be read.
    """
    note = Path(prefix + ".ids.json")
    file = Path(prefix + ".bin").stat()
    stamp = {"bytes": file.st_size, "modified_ns": file.st_mtime_ns}
    known = _noted(note, stamp)
    missing = sorted(set(wanted) - known.keys())
    if missing:
        known |= _count(prefix, missing)
        # A corpus that belongs to somebody else is counted at each start.
        with contextlib.suppress(OSError), new_file(note) as target:
            counts = {str(token_id): known[token_id] for token_id in sorted(known)}
            target.write(json.dumps(stamp | {"counts": counts}).encode())
    return {token_id: known[token_id] for token_id in wanted}


def _noted(note: Path, stamp: dict[str, int]) -> dict[int, int]:
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        if {name: content[name] for name in stamp} == stamp:
            return {int(token_id): int(count) for token_id, count in content["counts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def _count(prefix: str, wanted: list[int]) -> dict[int, int]:
    tokens = numpy.memmap(prefix + ".bin", dtype=IndexedDataset(prefix, mmap=True).index.dtype, mode="r")
    # Added tokens mostly stand together, at an end of the vocabulary: two comparisons leave next to nothing to count.
    ranges = [(lowest, numpy.zeros(highest - lowest + 1, dtype=numpy.int64)) for lowest, highest in _ranges(wanted)]
    for start in range(0, len(tokens), _CHUNK_TOKENS):
        chunk = numpy.asarray(tokens[start : start + _CHUNK_TOKENS])
        for lowest, counts in ranges:
            near = chunk[(chunk >= lowest) & (chunk < lowest + len(counts))]
            if near.size:
                counts += numpy.bincount(near.astype(numpy.int64) - lowest, minlength=len(counts))
    found = {lowest + i: int(count) for lowest, counts in ranges for i, count in enumerate(counts)}
    return {token_id: found[token_id] for token_id in wanted}


def _ranges(ids: list[int]) -> list[tuple[int, int]]:
    """The sorted ``ids`` in at most nine ranges, first and last id of each."""
    gap = max(256, ids[-1] // 8)
    ranges = [(ids[0], ids[0])]
    for token_id in ids[1:]:
        first, last = ranges[-1]
        if token_id - last > gap:
            ranges.append((token_id, token_id))
        else:
            ranges[-1] = (first, token_id)
    return ranges
