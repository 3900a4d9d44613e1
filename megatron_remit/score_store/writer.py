"""Filling a store: rows wait in memory and leave as whole shards. Any number of writers may fill one store.

Shape suffixes: N rows, S tokens of a row.
"""

import time
from pathlib import Path
from typing import Any

import numpy

from megatron_remit.errors import UserError
from megatron_remit.score_store.keys import Key
from megatron_remit.score_store.manifest import read_manifest
from megatron_remit.score_store.reader import ScoreStore
from megatron_remit.score_store.shard import write_shard

# Rows of this many bytes are written at once. Then 50B tokens make some 1500 files.
_SHARD_BYTES = 64 << 20
# A row waits at most about this long. It is what a killed job loses, and how far a run that follows lags behind.
SHARD_SECONDS = 60.0


class StoreWriter:
    """Adds rows to the store at ``folder``, whose manifest must be there."""

    def __init__(self, folder: Path, job: dict[str, Any], shard_seconds: float = SHARD_SECONDS) -> None:
        """``job`` says how the rows are scored; it is in the header of each shard.

        Raises:
            UserError: ``folder`` is no store.
        """
        self.folder = folder
        self._identity = read_manifest(folder).identity
        self._job = job
        self._seconds = shard_seconds
        self._keys: dict[Key, None] = {}
        self._rows: list[numpy.ndarray] = []
        self._oldest = 0.0
        self.shards = 0
        """Shards written so far."""
        row_bytes = self._identity.sequence_length * numpy.dtype(self._identity.dtype).itemsize
        self._most = max(1, _SHARD_BYTES // row_bytes)

    def __contains__(self, key: Key) -> bool:
        """Whether the row waits in memory for its shard."""
        return key in self._keys

    def add(self, key: Key, nll_S: numpy.ndarray) -> None:
        """Take a row [s], NLLs in nats; write a shard if it is due. A key that waits already is passed over.

        Raises:
            UserError: the NLLs are not finite in the dtype of the store, or the shard cannot be written.
        """
        if key in self._keys:
            return
        with numpy.errstate(over="ignore"):
            stored_S = numpy.asarray(nll_S).astype(self._identity.dtype)
        if not numpy.isfinite(stored_S).all():
            raise UserError(
                f"{self.folder}: a row with NLL {nll_S[~numpy.isfinite(stored_S)][0]} is not stored as "
                f"{self._identity.dtype}; the reference's scores must be finite: look at its checkpoint"
            )
        if not self._keys:
            self._oldest = time.monotonic()
        self._keys[key] = None
        self._rows.append(stored_S)
        if len(self._rows) >= self._most or time.monotonic() - self._oldest >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one shard. Raises UserError if it cannot be written; the store stays whole."""
        if not self._rows:
            return
        keys, nll_NS = list(self._keys), numpy.stack(self._rows)
        self._keys, self._rows = {}, []
        write_shard(self.folder, self._identity, keys, nll_NS, self._job)
        self.shards += 1

    def close(self) -> None:
        """Write what waits, and list every shard in the index. Raises UserError as :meth:`flush`."""
        self.flush()
        ScoreStore(self.folder).save_index()
