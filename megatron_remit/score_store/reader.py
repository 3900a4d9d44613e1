"""Reading a store: look a key up, read its NLLs, notice shards that other jobs add.

Shape suffixes: S tokens of a row.
"""

import errno
import os
from collections import OrderedDict
from pathlib import Path

import numpy

from megatron_remit.errors import UserError
from megatron_remit.score_store.files import DamagedFile, UnwritableFile, locked
from megatron_remit.score_store.index import Index, Run, empty_run, read_index, run_of_shards, write_index
from megatron_remit.score_store.keys import Key
from megatron_remit.score_store.manifest import Identity, read_manifest
from megatron_remit.score_store.shard import PATTERN, Shard

# Rows in memory (28 bytes each) above which the index file is written anew.
_LARGEST_PRIVATE_RUN = 1 << 20
# Open shard files of a process; the usual limit for all its files is 1024.
_OPEN_FILES = 128
# Listings that are tried while merges remove shards; one is nearly always enough.
_LISTINGS = 20


class ScoreStore:
    """A store, open for reading. Safe to use in forked DataLoader workers."""

    def __init__(self, folder: Path) -> None:
        """Open the store: headers and index, no NLLs.

        Raises:
            UserError: no store, or a shard is missing, cut short or of another store; the message names it.
        """
        self.folder = folder
        self.manifest = read_manifest(folder)
        self._open: OrderedDict[int, int] = OrderedDict()
        self._load()

    def _load(self) -> None:
        for _ in range(_LISTINGS):
            try:
                return self._load_once()
            except FileNotFoundError as error:
                gone = error  # a shard was merged into another between listing and opening it: list again
        raise DamagedFile(f"{gone.filename}: listed in its folder, but there is no such file")

    def _load_once(self) -> None:
        self.close()
        self._shards: list[Shard] = []
        self._names_known: set[str] = set()
        self._indexed, self._private = empty_run(), empty_run()
        index, names = self._list()
        if index is not None:
            for name, size in index.shards:
                shard = self._shard(name)
                if shard.header.size != size:
                    raise DamagedFile(f"{shard.path}: damaged, it has {shard.header.size} bytes, the index says {size}")
                self._shards.append(shard)
            self._names_known = {name for name, _ in index.shards}
            self._indexed = index.run
        self._take(names)

    def _list(self) -> tuple[Index | None, set[str]]:
        """The index file and the names of the shards. Raises UserError if an indexed shard is not there."""
        while True:
            index = read_index(self.folder, self.manifest.identity)
            names = self._names()
            lost = sorted({name for name, _ in index.shards} - names) if index else []
            if not lost:
                return index, names
            # `merge` removes shards after it has replaced the index: then the index is another by now.
            again = read_index(self.folder, self.manifest.identity)
            if again is not None and again.shards == index.shards:
                raise UserError(
                    f"{self.folder / lost[0]}: no such file, though the index lists it ({len(lost)} missing); restore "
                    f"it, or run 'tools/score_store.py prune {self.folder}' to forget it and score again"
                )

    def _names(self) -> set[str]:
        return {path.name for path in self.folder.glob(PATTERN)}

    def _shard(self, name: str) -> Shard:
        return Shard(self.folder / name, self.manifest.identity)

    def _take(self, names: set[str]) -> bool:
        """Add the shards that are not known yet, all or (when one raises) none; whether there were any."""
        new = [self._shard(name) for name in sorted(names - self._names_known)]
        rows = len(self._private) + sum(shard.rows for shard in new)
        if new and rows > _LARGEST_PRIVATE_RUN and self._write_index():
            self._load()
        elif new:
            self._private = run_of_shards(dict(enumerate(new, len(self._shards))), self._private)
            self._shards += new
            self._names_known |= {shard.path.name for shard in new}
        return bool(new)

    def __len__(self) -> int:
        """Rows, those that several jobs scored counted each time."""
        return len(self._indexed) + len(self._private)

    @property
    def shards(self) -> list[Shard]:
        """The shards that are known so far."""
        return list(self._shards)

    def refresh(self) -> bool:
        """Look for shards that other jobs have added; whether there were any.

        Raises:
            UserError: a new shard is damaged or of another store.
        """
        try:
            return self._take(self._names())
        except FileNotFoundError:  # merged away since it was listed
            self._load()
            return True

    def __contains__(self, key: Key) -> bool:
        return self._indexed.find(key) is not None or self._private.find(key) is not None

    def read(self, key: Key) -> numpy.ndarray | None:
        """The row's NLLs [s] in nats, float32; None if the store has no such row.

        Raises:
            DamagedFile: the bytes on disk are not those that were written. The message names the shard.
        """
        try:
            nll_S = self._read(key)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):  # NFS says ESTALE of an open file that is gone
                raise
            # Merged into another shard after this store was opened; a shard that is lost is named here.
            self._load()
            nll_S = self._read(key)
        return None if nll_S is None else nll_S.astype(numpy.float32)

    def _read(self, key: Key) -> numpy.ndarray | None:
        place = self._indexed.find(key) or self._private.find(key)
        if place is None:
            return None
        shard = self._shards[place.shard]
        return shard.read(self._descriptor(place.shard), place.row, key, place.check)

    def _descriptor(self, number: int) -> int:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) >= _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        descriptor = os.open(self._shards[number].path, os.O_RDONLY)
        # Rows are drawn in random order: reading ahead would fetch rows that nobody asked for.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        self._open[number] = descriptor
        return descriptor

    def run(self) -> Run:
        """All rows in one sorted table."""
        return run_of_shards(dict(enumerate(self._shards))) if len(self._private) else self._indexed

    def save_index(self) -> None:
        """Write the index file for all shards that are there now, and map it.

        Where the store may not be written, or its disk is full, the rows stay in this process's memory.

        Raises:
            UserError: a shard is missing, damaged or of another store.
        """
        if self._write_index():
            self._load()

    def _write_index(self) -> bool:
        """Whether an index file for all shards is there now. Of several processes the first writes it."""
        try:
            with locked(self.folder):
                index, names = self._list()
                if index is None or {name for name, _ in index.shards} != names:
                    index_shards(self.folder, self.manifest.identity, names)
        except (OSError, UnwritableFile):
            return False
        return True

    def close(self) -> None:
        """Close the files of the shards; the next read opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])


def index_shards(folder: Path, identity: Identity, names: set[str]) -> None:
    """Write the index file for exactly the shards ``names``.

    Raises:
        UserError: a shard is damaged or of another store, or the file cannot be written.
    """
    shards = [Shard(folder / name, identity) for name in sorted(names)]
    run = run_of_shards(dict(enumerate(shards)))
    write_index(folder, identity, run, [(shard.path.name, shard.header.size) for shard in shards])


def indexed_names(folder: Path, identity: Identity) -> set[str] | None:
    """The shards that the index file lists; None without a sound index."""
    index = read_index(folder, identity)
    return None if index is None else {name for name, _ in index.shards}
