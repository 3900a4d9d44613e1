"""The training set with one more column: a frozen model's NLLs from a store.

Shape suffixes: S tokens of a row.
"""

import time
from functools import partial
from typing import Any

import numpy
import torch
from megatron.core import mpu
from megatron.training import get_args, print_rank_0
from torch.utils.data import Dataset

from megatron_remit.data.datasets import build_datasets, reads_data
from megatron_remit.errors import UserError
from megatron_remit.score_store.files import DamagedFile
from megatron_remit.score_store.keys import Key, key_bytes, row_key
from megatron_remit.score_store.reader import ScoreStore
from megatron_remit.scoring.arguments import stored_columns
from megatron_remit.scoring.session import current_stores, open_store

_POLL_SECONDS = 1.0
_MESSAGE_SECONDS = 30.0


def train_valid_test_datasets(
    num_samples: tuple[int, int, int], vp_stage: int | None = None
) -> tuple[Dataset | None, Dataset | None, Dataset | None]:
    """Train, validation and test datasets of this rank (None where it reads none).

    Megatron calls it once for each model chunk. One rank makes the builder's index files, and all share them. With
    ``--score-store`` the training set of the last stage brings the reference's NLLs along, with ``--score-store-base``
    those of the reference's base. A store that ``--score-store-write`` is to make is made here, where the rows stand.
    """
    print_rank_0("> building train, validation, and test datasets ...")
    train, valid, test = build_datasets(num_samples, partial(reads_data, vp_stage))
    if train is not None and mpu.is_pipeline_last_stage(vp_stage is None, vp_stage):
        args = get_args()
        if args.score_store is not None and "reference_nll" not in current_stores():
            open_store(args, create=True)
        for column, store in current_stores().items():
            # A row that the reference's store lacks can be scored by the reference; the base's store has no such way.
            online = column == "reference_nll" and args.score_miss == "online"
            train = ScoredDataset(train, store, online, args.score_wait, column, stored_columns(args)[column])
    return train, valid, test


# Megatron: build on every rank, not only where the tensor-parallel rank is 0 (`reads_data` decides).
train_valid_test_datasets.is_distributed = True  # type: ignore[attr-defined]


class ScoredDataset(Dataset):
    """Wraps Megatron's GPT or blended dataset. Each sample gains

    * ``column`` [s] float32, nats; NaN throughout where the store lacks the row and ``online`` is set;
    * ``score_key`` [2] int64, the row's key.
    """

    def __init__(
        self,
        dataset: Any,
        store: ScoreStore,
        online: bool,
        wait_seconds: float,
        column: str = "reference_nll",
        flag: str = "--score-store",
    ) -> None:
        """Wrap ``dataset``.

        Args:
            online: a row that the store lacks is scored later; otherwise it is an error.
            wait_seconds: how long to wait first for another job to score such a row.
            column: the name that the NLLs get.
            flag: the flag that names the store, for messages.
        """
        self.dataset = dataset
        self._column = column
        self._flag = flag
        self._instead = ", or use --score-miss online" if flag == "--score-store" else ""
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
        return sample | {self._column: torch.from_numpy(nll_S), "score_key": torch.from_numpy(high_low)}

    def _read(self, key: Key, index: int) -> numpy.ndarray | None:
        try:
            nll_S = self._store.read(key)
            if nll_S is None:
                nll_S = self._wait(key, index)
        except DamagedFile as error:
            if not self._online:
                raise UserError(
                    f"{self._flag}: sample {index} of the run: {error}; run 'tools/score_store.py prune "
                    f"{self._store.folder}' and score again{self._instead}"
                ) from None
            print(f"> scoring sample {index} online: {error}", flush=True)
            return None
        if nll_S is None and not self._online:
            raise UserError(
                f"{self._flag} {self._store.folder}: sample {index} of the run (key {key_bytes(key).hex()}) is not in "
                f"it{self._waited()}; score the corpus with tools/score_corpus.py and this run's data flags"
                f"{self._instead}"
            )
        return nll_S

    def _wait(self, key: Key, index: int) -> numpy.ndarray | None:
        """Look again until another job has scored the row or the time is up."""
        start = reported = time.monotonic()
        if not self._wait_seconds and start - self._refreshed < _POLL_SECONDS:
            return None  # a store that is filled row by row is not listed again for each row
        while True:
            self._refreshed = time.monotonic()
            if self._store.refresh():
                nll_S = self._store.read(key)
                if nll_S is not None:
                    return nll_S
            now = time.monotonic()
            if now - start >= self._wait_seconds:
                return None
            if reported == start or now - reported >= _MESSAGE_SECONDS:
                reported = now
                print(
                    f"> sample {index} is not in {self._store.folder} yet: waiting since {now - start:.0f} s, at "
                    f"most {self._wait_seconds:g} s",
                    flush=True,
                )
            time.sleep(min(_POLL_SECONDS, self._wait_seconds - (now - start)))

    def _waited(self) -> str:
        return f" after {self._wait_seconds:g} s of waiting" if self._wait_seconds else ""
