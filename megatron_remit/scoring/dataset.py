"""The training set with one more column: the reference's NLLs from a store."""

import time
from typing import Any

import numpy
import torch
from torch.utils.data import Dataset

from megatron_remit.errors import UserError
from megatron_remit.score_store.files import DamagedFile
from megatron_remit.score_store.keys import Key, key_bytes, row_key
from megatron_remit.score_store.reader import ScoreStore

_POLL_SECONDS = 1.0
_MESSAGE_SECONDS = 30.0


class ScoredDataset(Dataset):
    """Wraps Megatron's GPT or blended dataset. A sample gains

    * ``reference_nll`` [s] float32, nats; NaN throughout where the store lacks the row and ``online`` is set;
    * ``score_key`` [2] int64, the row's key.
    """

    def __init__(self, dataset: Dataset, store: ScoreStore, online: bool, wait_seconds: float) -> None:
        """``online``: a row that is not there is scored later, else it is an error. ``wait_seconds``: how long to wait
        for it first."""
        self.dataset = dataset
        self._store = store
        self._identity = store.manifest.identity
        self._online = online
        self._wait_seconds = wait_seconds
        self._refreshed = -_POLL_SECONDS

    @property
    def split(self) -> Any:
        """Which split this is; Megatron's dataloader asks."""
        return getattr(self.dataset, "split", None) or self.dataset.index_split

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample with its scores.

        Raises:
            UserError: the row is not in the store, or its bytes there are damaged, and it is not scored online.
        """
        sample = self.dataset[index]
        key = row_key(sample, self._identity.reset_position_ids, self._identity.reset_attention_mask)
        nll_S = self._read(key, index)
        if nll_S is None:
            nll_S = numpy.full(self._identity.sequence_length, numpy.nan, dtype=numpy.float32)
        high_low = numpy.array(key, dtype=numpy.uint64).view(numpy.int64)
        return sample | {"reference_nll": torch.from_numpy(nll_S), "score_key": torch.from_numpy(high_low)}

    def _read(self, key: Key, index: int) -> numpy.ndarray | None:
        try:
            nll_S = self._store.read(key)
            if nll_S is None:
                nll_S = self._wait(key, index)
        except DamagedFile as error:
            if not self._online:
                raise UserError(
                    f"--score-store: sample {index} of the run: {error}; run 'tools/score_store.py prune "
                    f"{self._store.folder}' and score again, or use --score-miss online"
                ) from None
            print(f"> scoring sample {index} online: {error}", flush=True)
            return None
        if nll_S is None and not self._online:
            raise UserError(
                f"--score-store {self._store.folder}: sample {index} of the run (key {key_bytes(key).hex()}) is not in "
                f"it{self._waited()}; score the corpus with tools/score_corpus.py and this run's data flags, or use "
                "--score-miss online"
            )
        return nll_S

    def _wait(self, key: Key, index: int) -> numpy.ndarray | None:
        """Look again until another job has scored the row or the time is up."""
        start = told = time.monotonic()
        if not self._wait_seconds and start - self._refreshed < _POLL_SECONDS:
            return None  # a store that is filled row by row is not listed again for each of them
        while True:
            self._refreshed = time.monotonic()
            if self._store.refresh():
                nll_S = self._store.read(key)
                if nll_S is not None:
                    return nll_S
            now = time.monotonic()
            if now - start >= self._wait_seconds:
                return None
            if told == start or now - told >= _MESSAGE_SECONDS:
                told = now
                print(
                    f"> sample {index} is not in {self._store.folder} yet: waiting since {now - start:.0f} s, at "
                    f"most {self._wait_seconds:g} s",
                    flush=True,
                )
            time.sleep(min(_POLL_SECONDS, self._wait_seconds - (now - start)))

    def _waited(self) -> str:
        return f" after {self._wait_seconds:g} s of waiting" if self._wait_seconds else ""
