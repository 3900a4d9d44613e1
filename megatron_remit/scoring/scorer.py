"""Score a corpus ahead of training: the rows that a training run will read, through the reference, into a store.

Every model replica takes each ``data-parallel size``-th row of the training set in the order of training, so a run
that follows is served in its order. The last stage alone decides which rows come next, since it writes them. The other
ranks of the replica learn them from it.

Shape suffixes: B sequences of a reference microbatch (or of several, put together), S sequence positions.
"""

import datetime
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.training import get_args
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset, default_collate

from megatron_remit import heartbeat
from megatron_remit.data.batch import get_batch
from megatron_remit.data.datasets import reads_data
from megatron_remit.nll import Vocabulary, nll_output
from megatron_remit.parallel import whole_sequence
from megatron_remit.score_store.keys import Key, row_key
from megatron_remit.score_store.reader import ScoreStore
from megatron_remit.score_store.writer import StoreWriter
from megatron_remit.scoring.ahead import score_microbatches
from megatron_remit.scoring.online import agree_on_maximum, shares_experts
from megatron_remit.scoring.session import start_writer

_MESSAGE_SECONDS = 10.0
# How long the writing rank may pass over rows that the store has, while the other ranks wait for it.
SKIP_SECONDS = 30.0
# Whether a replica has rows to score: at the end of the corpus, after a look at rows that the store has, now.
_NOTHING, _LATER, _NOW = range(3)
# Microbatches that keep each pipeline stage busy for most of a forward-only schedule.
_MICROBATCHES_PER_STAGE = 4


def score_rows(
    reference: list[Module],
    dataset: Dataset | None,
    store: ScoreStore,
    num_rows: int,
    ends: Callable[[], bool] | None = None,
) -> None:
    """Score the rows of ``dataset`` that ``store`` lacks and write them to it.

    Args:
        reference: this rank's model chunks.
        dataset: the training set; None on a rank that reads no data.
        num_rows: rows that training will draw; the same on every rank.
        ends: whether to end before the last row, asked between microbatches; what is scored is then in the store.

    Raises:
        UserError: an NLL is not finite, a shard cannot be written, or the corpus holds a bad token.
    """
    args = get_args()
    stages = args.pipeline_model_parallel_size
    count = stages * _MICROBATCHES_PER_STAGE if stages > 1 else 1
    size = args.reference_micro_batch_size
    writer = start_writer(args)
    planner = None if writer is None or dataset is None else RowPlanner(dataset, store, num_rows, writer, ends)
    together = shares_experts(reference)
    for step in itertools.count(1):
        rows = _agreed_rows(planner, count * size)
        work = _work_left(rows, together)
        if work == _NOTHING:
            break
        heartbeat.beat(heartbeat.SCORING, step)
        if work == _LATER:
            continue
        # The schedule has one shape; the last rows of the corpus are scored more than once to fill it. A replica that
        # only lends its experts to the others scores the first row again, and forgets it.
        own = rows or [0]
        padded = own + own[-1:] * (count * size - len(own))
        nlls = _score(reference, dataset, padded, count)
        if nlls and rows:
            whole_BS = torch.cat([whole_sequence(nll_BS, mpu.get_context_parallel_group()) for nll_BS in nlls])
            if planner is not None:
                planner.store_rows(whole_BS)
    if planner is not None:
        planner.finish()


def _work_left(rows: list[int] | None, together: bool) -> int:
    """What this replica does next (``_NOTHING``, ``_LATER``, ``_NOW``), or all of them, if they share experts."""
    work = _NOTHING if rows is None else _NOW if rows else _LATER
    if together:
        most = torch.tensor([work], device=torch.cuda.current_device())
        agree_on_maximum(most, together)
        work = int(most.item())
    return work


def _agreed_rows(planner: "RowPlanner | None", most: int) -> list[int] | None:
    """The next rows of this replica, the same on all its ranks.

    Empty if a while brought only rows that the store has. None at the end of the corpus.
    """
    rows = torch.full((most + 1,), -1, dtype=torch.int64)
    if planner is not None:
        chosen = planner.next_rows(most)
        rows[: len(chosen)] = torch.tensor(chosen, dtype=torch.int64)
        if chosen or not planner.at_end:
            rows[-1] = 0
    rows = rows.to(torch.cuda.current_device())
    agree_on_maximum(rows)
    *found, goes_on = rows.tolist()
    return [row for row in found if row >= 0] if goes_on == 0 else None


def _score(reference: list[Module], dataset: Dataset | None, rows: list[int], count: int) -> list[Tensor]:
    """NLLs [B, S] of each microbatch on the last stage; elsewhere nothing."""
    args = get_args()
    size = args.reference_micro_batch_size
    chunks = len(reference)
    batches = []
    for vp_stage in range(chunks):
        stage = vp_stage if chunks > 1 else None
        samples = _microbatches(dataset, rows, size) if dataset is not None and reads_data(stage) else None
        batches.append([get_batch(samples, size, stage) for _ in range(count)])
    return score_microbatches(
        get_forward_backward_func(),
        reference,
        batches,
        nll_output(Vocabulary.of_reference(args)),
        size,
        args.seq_length,
    )


def _microbatches(dataset: Dataset, rows: list[int], size: int) -> Iterator[dict[str, Any]]:
    for start in range(0, len(rows), size):
        yield default_collate([dataset[row] for row in rows[start : start + size]])


class RowPlanner:
    """On the rank that writes: which rows come next, and how far the work is."""

    def __init__(
        self,
        dataset: Dataset,
        store: ScoreStore,
        num_rows: int,
        writer: StoreWriter,
        ends: Callable[[], bool] | None = None,
    ) -> None:
        """``num_rows``: rows of ``dataset`` that all replicas score together. ``ends``: whether to end before."""
        self._dataset, self._store, self._writer = dataset, store, writer
        self._replica, self._replicas = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
        self._todo = range(self._replica, num_rows, self._replicas)
        self._ends = ends
        self._at = 0
        self._keys: list[Key] = []
        self._shards_written = 0
        self._scored = self._found = 0
        self._start = self._reported = time.monotonic()

    @property
    def at_end(self) -> bool:
        """Whether every row has been looked at, or no more shall be."""
        return self._at >= len(self._todo) or (self._ends is not None and self._ends())

    def next_rows(self, most: int) -> list[int]:
        """Up to ``most`` rows that are neither in the store nor waiting in the writer.

        Fewer, or none, once ``SKIP_SECONDS`` have passed: the replica's other ranks wait in a collective that has a
        timeout.
        """
        rows: list[int] = []
        self._keys = []
        until = time.monotonic() + SKIP_SECONDS
        while len(rows) < most and not self.at_end:
            row = self._todo[self._at]
            self._at += 1
            key = self._key(row)
            if key in self._writer or key in self._keys or key in self._store:
                self._found += 1
            else:
                rows.append(row)
                self._keys.append(key)
            self._report()
            if time.monotonic() >= until:
                break
        return rows

    def _key(self, row: int) -> Key:
        identity = self._store.manifest.identity
        return row_key(self._dataset[row], identity.reset_position_ids, identity.reset_attention_mask)

    def store_rows(self, nll_BS: Tensor) -> None:
        """Hand the NLLs [B, S] of the rows that ``next_rows`` gave last to the writer, nats.

        Raises:
            UserError: an NLL is not finite, or a shard cannot be written.
        """
        for key, nll_S in zip(self._keys, nll_BS.float().cpu().numpy(), strict=False):
            self._writer.add(key, nll_S)
        self._scored += len(self._keys)
        if self._writer.shards != self._shards_written:
            self._shards_written = self._writer.shards
            self._store.refresh()  # rows that left the writer, and those of other jobs

    def _report(self, last: bool = False) -> None:
        now = time.monotonic()
        if self._replica or (now - self._reported < _MESSAGE_SECONDS and not last):
            return
        self._reported = now
        seconds = now - self._start
        left = len(self._todo) - self._at
        pace = self._at / seconds if seconds else 0.0
        eta = datetime.timedelta(seconds=round(left / pace)) if pace else "unknown"
        print(
            f"> scored {self._scored}, found {self._found} of {len(self._todo)} rows of replica 0 of "
            f"{self._replicas} | {pace:.1f} rows/s | ETA {eta}",
            flush=True,
        )

    def finish(self) -> None:
        """Say how it went."""
        self._report(last=True)
        left = len(self._todo) - self._at
        if left:
            print(f"> ended by a signal: replica {self._replica} leaves {left} rows to the next start", flush=True)
