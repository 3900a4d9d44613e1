"""Reading a store: look a key up, read its NLLs, notice shards that other jobs add or merge away.

A reader works on a snapshot: the shards of one listing of the folder, and where each of their rows lies. Other jobs may
change the folder at any time. When that shows, the snapshot is replaced, as a whole.

Shape suffixes: S tokens of a row.
"""

import errno
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy

from megatron_remit.errors import UserError
from megatron_remit.score_store.files import DamagedFile, UnwritableFile, locked
from megatron_remit.score_store.index import Index, IndexTable, read_index, table_of_shards, write_index
from megatron_remit.score_store.keys import Key, KeyTable, Place
from megatron_remit.score_store.manifest import read_manifest
from megatron_remit.score_store.shard import PATTERN, Shard

# Rows in a process's own memory (28 bytes each) above which the index file is written anew.
_MOST_PRIVATE_ROWS = 1 << 20
# Open shard files of a process; the usual limit for all its files is 1024.
_OPEN_FILES = 128
# Listings that are tried while merges remove shards; one is nearly always enough.
_LISTINGS = 20


@dataclass(frozen=True)
class Snapshot:
    """The shards of one listing, numbered, and their rows. It never changes; forked processes share its memory."""

    shards: tuple[Shard, ...]
    indexed: KeyTable | IndexTable
    """Rows of the first shards: the index file, open."""
    private: KeyTable
    """Rows of the other shards, in memory."""

    @property
    def names(self) -> set[str]:
        """File names of the shards."""
        return {shard.path.name for shard in self.shards}

    def grown(self, new: list[Shard]) -> "Snapshot":
        """With the shards ``new`` as well. Raises DamagedFile, or FileNotFoundError if one of them is gone."""
        private = table_of_shards(dict(enumerate(new, len(self.shards))), self.private)
        return Snapshot((*self.shards, *new), self.indexed, private)

    def find(self, key: Key) -> Place | None:
        """Where the row of ``key`` lies."""
        return self.indexed.find(key) or self.private.find(key)


class ScoreStore:
    """A store, open for reading. Safe to use in forked DataLoader workers."""

    def __init__(self, folder: Path) -> None:
        """Open the store: headers and index, no NLLs.

        Raises:
            UserError: no store, or a shard is missing, cut short or of another store; the message names it.
        """
        self.folder = folder
        self.manifest = read_manifest(folder)
        self._open: OrderedDict[Shard, int] = OrderedDict()
        self._snapshot = self._take_snapshot(None)

    def _renew(self, start: Snapshot | None) -> bool:
        """Take a new snapshot; whether it is another than ``start``. On an error the old one stays."""
        before, self._snapshot = self._snapshot, self._take_snapshot(start)
        if self._snapshot.shards[: len(before.shards)] != before.shards:
            self.close()  # shards that were merged away take up disk space for as long as they are open
        return self._snapshot is not start

    def _take_snapshot(self, start: Snapshot | None) -> Snapshot:
        """``start`` with the shards that came later; ``start`` itself if none did. None begins with the index file.

        A shard may be merged into another between its listing and its opening. Then all is listed again.

        Raises:
            UserError: a shard is missing, damaged or of another store.
        """
        may_index, missing = True, str(self.folder)
        for _ in range(_LISTINGS):
            try:
                if start is None:
                    index, names = self._list()
                    start = self._indexed_snapshot(index)
                else:
                    names = self._names()
                new = [self._shard(name) for name in sorted(names - start.names)]
                rows = len(start.private) + sum(shard.rows for shard in new)
                if new and rows > _MOST_PRIVATE_ROWS and may_index:
                    may_index = False  # once is enough: what is added meanwhile fits in memory
                    if self._write_index():
                        start = None
                        continue
                return start.grown(new) if new else start
            except FileNotFoundError as error:
                missing, start = error.filename, None
        raise DamagedFile(f"{missing}: listed in its folder, but there is no such file")

    def _list(self) -> tuple[Index | None, set[str]]:
        """The index file, and the names of the shards that are there.

        Raises:
            UserError: a shard that the index lists is missing.
            FileNotFoundError: so it seemed, but the index has been replaced since.
        """
        # In this order: a shard that is added in between is not in the index.
        index = read_index(self.folder, self.manifest.identity)
        names = self._names()
        if index is None:
            return None, names
        lost = sorted(index.names - names)
        if lost:
            path = self.folder / lost[0]
            # `merge` removes shards after it has replaced the index: then the index is another by now.
            again = read_index(self.folder, self.manifest.identity)
            if again is None or again.shards != index.shards:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            raise UserError(
                f"{path}: no such file, though the index lists it ({len(lost)} missing); restore "
                f"it, or run 'tools/score_store.py prune {self.folder}' to forget it and score again"
            )
        return index, names

    def _indexed_snapshot(self, index: Index | None) -> Snapshot:
        """Of the shards that the index file lists; of none without one."""
        if index is None:
            return Snapshot((), KeyTable.sorted_from([], 0), KeyTable.sorted_from([], 0))
        shards = []
        for name, size in index.shards:
            shard = self._shard(name)
            if shard.header.size != size:
                raise DamagedFile(f"{shard.path}: damaged, it has {shard.header.size} bytes, the index says {size}")
            shards.append(shard)
        return Snapshot(tuple(shards), index.table, KeyTable.sorted_from([], 0))

    def _names(self) -> set[str]:
        return {path.name for path in self.folder.glob(PATTERN)}

    def _shard(self, name: str) -> Shard:
        return Shard(self.folder / name, self.manifest.identity)

    def __len__(self) -> int:
        """Rows. One that several jobs scored counts each time."""
        return len(self._snapshot.indexed) + len(self._snapshot.private)

    @property
    def shards(self) -> list[Shard]:
        """The shards that are known so far."""
        return list(self._snapshot.shards)

    def refresh(self) -> bool:
        """Look for shards that other jobs have added; whether there were any.

        Raises:
            UserError: a new shard is damaged or of another store.
        """
        return self._renew(self._snapshot)

    def __contains__(self, key: Key) -> bool:
        return self._find(key) is not None

    def _find(self, key: Key) -> Place | None:
        """Where the row of ``key`` lies. If the index file was cut short since, the shards say it."""
        try:
            return self._snapshot.find(key)
        except DamagedFile:
            self._renew(None)
            return self._snapshot.find(key)

    def read(self, key: Key) -> numpy.ndarray | None:
        """The row's NLLs [s] in nats, float32; None if the store has no such row.

        Raises:
            DamagedFile: the bytes on disk are not those that were written. The message names the shard.
            UserError: the row's shard is gone, though the index lists it.
        """
        try:
            nll_S = self._read(key)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):  # NFS says ESTALE of an open file that is gone
                raise
            # Merged into another shard after it was listed. If it is lost instead, the new listing names it.
            self._renew(None)
            nll_S = self._read(key)
        return None if nll_S is None else nll_S.astype(numpy.float32)

    def _read(self, key: Key) -> numpy.ndarray | None:
        place = self._find(key)
        if place is None:
            return None
        shard = self._snapshot.shards[place.shard]
        return shard.read(self._descriptor(shard), place.row, key, place.check)

    def _descriptor(self, shard: Shard) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        descriptor = os.open(shard.path, os.O_RDONLY)
        # Rows are drawn in random order: reading ahead would fetch rows that nobody asked for.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        self._open[shard] = descriptor
        return descriptor

    def table(self) -> KeyTable:
        """All rows in one sorted table."""
        snapshot = self._snapshot
        return table_of_shards(dict(enumerate(snapshot.shards))) if len(snapshot.private) else snapshot.indexed.whole()

    def save_index(self) -> None:
        """Write the index file for all shards that are there now, and open it.

        Where the store may not be written, or its disk is full, the rows stay in this process's memory.

        Raises:
            UserError: a shard is missing, damaged or of another store.
        """
        if self._write_index():
            self._renew(None)

    def _write_index(self) -> bool:
        """Whether an index file for all shards is there now. Of several processes the first writes it."""
        try:
            with locked(self.folder):
                index, names = self._list()
                if index is None or index.names != names:
                    write_index(self.folder, self.manifest.identity, names)
        except (OSError, UnwritableFile):
            return False
        return True

    def close(self) -> None:
        """Close the files of the shards; the next read opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])
