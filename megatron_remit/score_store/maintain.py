"""Keeping a store in order: verify it, merge its shards, prune what is damaged or not needed.

Shape suffixes: N rows of a store, S tokens of a row.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy
from tqdm import tqdm

from megatron_remit.errors import UserError
from megatron_remit.score_store.files import DamagedFile, locked
from megatron_remit.score_store.index import INDEX, read_index, table_of_shards, write_index
from megatron_remit.score_store.keys import Key
from megatron_remit.score_store.manifest import read_manifest
from megatron_remit.score_store.shard import PATTERN, Shard, write_shard

PRUNED = "pruned"
# Size of a merged shard. Writing it takes about twice as much memory.
_MERGED_BYTES = 256 << 20
# A temporary file lives only for the seconds in which one shard is written.
_STALE_SECONDS = 3600.0


@dataclass
class Check:
    """What :func:`verify` found."""

    rows: int = 0
    duplicates: int = 0
    """Rows beyond the first of their key."""
    shards: int = 0
    leftovers: list[Path] = field(default_factory=list)
    """Temporary files of killed writers: never read."""
    problems: list[str] = field(default_factory=list)
    """One message for each damaged, foreign or missing file."""


def verify(folder: Path) -> Check:
    """Read every byte of the store and compare it with the checksums.

    Raises:
        UserError: ``folder`` is no store.
    """
    identity = read_manifest(folder).identity
    check = Check(leftovers=leftovers(folder))
    whole: dict[int, Shard] = {}
    for path in tqdm(sorted(folder.glob(PATTERN)), desc="verify", unit="shard", disable=None):
        check.shards += 1
        try:
            shard = Shard(path, identity)
            damaged = [row for row, _, nll_S in _rows(shard) if nll_S is None]
            if damaged:
                check.problems.append(f"{path}: damaged, {len(damaged)} of {shard.rows} rows, first row {damaged[0]}")
            check.rows += shard.rows - len(damaged)
            whole[len(whole)] = shard
        except DamagedFile as error:
            check.problems.append(str(error))
    table = table_of_shards(whole)
    check.duplicates = len(table) - int(table.first_of_key_N().sum())
    index = read_index(folder, identity)
    if index is None:
        if (folder / INDEX).exists():
            check.problems.append(f"{folder / INDEX}: damaged; 'prune' writes it anew, and so does the next run")
    else:
        check.problems += [
            f"{folder / name}: no such file, though the index lists it"
            for name in sorted(index.names)
            if not (folder / name).exists()
        ]
    return check


def _rows(shard: Shard) -> Iterator[tuple[int, Key, numpy.ndarray | None]]:
    """Each row's number, key and NLLs; None for damaged NLLs. Raises DamagedFile on damaged key columns."""
    columns = shard.key_columns()
    descriptor = os.open(shard.path, os.O_RDONLY)
    try:
        for row in range(shard.rows):
            key = int(columns["high"][row]), int(columns["low"][row])
            try:
                yield row, key, shard.read(descriptor, row, key, int(columns["check"][row]))
            except DamagedFile:
                yield row, key, None
    finally:
        os.close(descriptor)


def leftovers(folder: Path) -> list[Path]:
    """Temporary files that no writer still holds: older than an hour."""
    return [path for path in sorted(folder.glob(".*.tmp")) if time.time() - path.stat().st_mtime > _STALE_SECONDS]


def merge(folder: Path) -> tuple[int, int]:
    """Put small shards together and drop all but one row of each key. Other jobs may read and write meanwhile.

    If it is killed, at whatever moment, it leaves a whole store, at worst with some rows twice. Returns the numbers of
    shards before and after.

    Raises:
        UserError: a shard is damaged (``prune`` first), or the disk is full.
    """
    identity = read_manifest(folder).identity
    names = sorted(path.name for path in folder.glob(PATTERN))
    shards = [Shard(folder / name, identity) for name in names]
    table = table_of_shards(dict(enumerate(shards)))
    first_N = table.first_of_key_N()
    repeated = set(table.columns["shard"][~first_N].tolist())
    small = {number for number, shard in enumerate(shards) if shard.rows * shard.row_bytes < _MERGED_BYTES // 2}
    old = sorted(small | repeated)
    if len(old) < 2 and not repeated:
        return len(names), len(names)
    first_of = {number: numpy.zeros(shards[number].rows, dtype=bool) for number in old}
    for number, row in zip(table.columns["shard"][first_N], table.columns["row"][first_N], strict=True):
        if int(number) in first_of:
            first_of[int(number)][row] = True
    merged = _NewShards(folder)
    for number in tqdm(old, desc="merge", unit="shard", disable=None):
        for row, key, nll_S in _rows(shards[number]):
            if nll_S is None:
                raise UserError(f"{shards[number].path}: row {row} is damaged; run 'prune' first, then score again")
            if first_of[number][row]:
                merged.add(shards[number], key, nll_S)
    merged.write()
    replaced = {names[number] for number in old}
    with locked(folder):
        present = {path.name for path in folder.glob(PATTERN)}
        # The index first: whoever opens the store from here on finds the new shards and misses none.
        write_index(folder, identity, present - replaced)
        for name in replaced:
            (folder / name).unlink(missing_ok=True)
    return len(names), len(names) - len(old) + merged.shards


class _NewShards:
    """Rows of several shards on their way into new ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._identity = read_manifest(folder).identity
        self._keys: list[Key] = []
        self._rows: list[numpy.ndarray] = []
        self._jobs: list[dict] = []
        self._bytes = 0
        self.shards = 0

    def add(self, shard: Shard, key: Key, nll_S: numpy.ndarray) -> None:
        """Take a row of ``shard``; writes a shard when enough rows wait."""
        for job in shard.job.get("merged", [shard.job]):
            if job not in self._jobs:
                self._jobs.append(job)
        self._keys.append(key)
        self._rows.append(nll_S)
        self._bytes += nll_S.nbytes
        if self._bytes >= _MERGED_BYTES:
            self.write()

    def write(self) -> None:
        """Write what waits as one shard."""
        if self._keys:
            job = self._jobs[0] if len(self._jobs) == 1 else {"merged": self._jobs}
            write_shard(self._folder, self._identity, self._keys, numpy.stack(self._rows), job)
            self.shards += 1
        self._keys, self._rows, self._jobs, self._bytes = [], [], [], 0


def prune(folder: Path, keep: set[Key] | None = None) -> list[str]:
    """Make a damaged store whole, and with ``keep`` drop all rows but those of these keys.

    The sound rows of a damaged shard go to a new one. The damaged file, and any file of another store, is moved to
    ``pruned/`` in the store's folder. Shards that are gone are forgotten. What is then missing can be scored again.

    Returns:
        What was done, one line for each file.

    Raises:
        UserError: ``folder`` is no store, or the disk is full.
    """
    identity = read_manifest(folder).identity
    done: list[str] = []
    before = {path.name for path in folder.glob(PATTERN)}
    for path in tqdm([folder / name for name in sorted(before)], desc="prune", unit="shard", disable=None):
        try:
            done += _prune_shard(Shard(path, identity), keep)
        except DamagedFile as error:
            done.append(f"{error}; moved to {PRUNED}/")
            _set_aside(path)
    for path in leftovers(folder):
        path.unlink()
        done.append(f"{path}: left over by a killed writer, removed")
    with locked(folder):
        present = {path.name for path in folder.glob(PATTERN)}
        index = read_index(folder, identity)
        lost = (index.names if index else set()) - present - before
        done += [f"{folder / name}: gone, forgotten" for name in sorted(lost)]
        write_index(folder, identity, present)
    return done


def _prune_shard(shard: Shard, keep: set[Key] | None) -> list[str]:
    sound, damaged, pruned = 0, 0, _NewShards(shard.path.parent)
    for _, key, nll_S in _rows(shard):
        if nll_S is None:
            damaged += 1
        elif keep is None or key in keep:
            pruned.add(shard, key, nll_S)
            sound += 1
    if sound == shard.rows:
        return []
    pruned.write()
    if damaged:
        _set_aside(shard.path)
        return [f"{shard.path}: {damaged} damaged rows dropped, {sound} kept; the file moved to {PRUNED}/"]
    shard.path.unlink()
    return [f"{shard.path}: {shard.rows - sound} rows dropped, {sound} kept"]


def _set_aside(path: Path) -> None:
    aside = path.parent / PRUNED
    aside.mkdir(exist_ok=True)
    os.replace(path, aside / path.name)
