"""Score ahead: before each training step, the reference's NLL of the step's tokens.

Megatron's schedule for the step is wrapped. The wrapper reads the step's microbatches, runs the reference over them
with the same schedule in forward-only mode, and then lets the policy train on the same microbatches, each with one
more entry, ``reference_nll``. The reference's pipeline drain overlaps the policy's fill, and interleaved schedules need
no special tensor shapes. Evaluation passes straight through.

Never score inside the policy's forward step: the last stage would wait for policy activations while the first stage
sends the reference's.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.training import get_args
from torch import Tensor
from torch.nn import Module

from megatron_remit.batch import Batch, get_batch
from megatron_remit.forward import model_nll
from megatron_remit.score_store.arguments import scores_ahead
from megatron_remit.score_store.online import filled, missing_groups

Schedule = Callable[..., list[dict[str, Tensor]]]


class ScoreAhead:
    """Wraps the function that Megatron's ``get_forward_backward_func`` returned."""

    def __init__(self, reference: list[Module], schedule: Schedule) -> None:
        """``reference`` holds this rank's model chunks, one for each virtual pipeline stage."""
        self._reference = reference
        self._schedule = schedule

    def __call__(self, *, data_iterator: Any, forward_only: bool, **kwargs: Any) -> list[dict[str, Tensor]]:
        """Megatron's schedule signature; returns what the policy's schedule returns."""
        if forward_only or not scores_ahead(get_args()):
            return self._schedule(data_iterator=data_iterator, forward_only=forward_only, **kwargs)
        chunked = isinstance(data_iterator, list)
        iterators = data_iterator if chunked else [data_iterator]
        clock.start_reference()
        batches = [
            read_step(iterator, vp_stage if chunked else None) for vp_stage, iterator in enumerate(iterators)
        ]
        self._add_scores(batches, kwargs["seq_length"])
        clock.stop_reference()
        ready = [iter(chunk_batches) for chunk_batches in batches]
        return self._schedule(data_iterator=ready if chunked else ready[0], forward_only=False, **kwargs)

    def _add_scores(self, batches: list[list[Batch]], seq_length: int) -> None:
        """Put the reference's NLL of each policy microbatch, [B, S] in nats, into the last model chunk's batches.

        With a score store only the reference microbatches that hold a row it lacks are run.
        """
        args = get_args()
        groups = [regroup(chunk, args.reference_micro_batch_size, args.micro_batch_size) for chunk in batches]
        if args.score_store is None:
            nlls = score_microbatches(self._schedule, self._reference, groups, seq_length)
        else:
            wanted = missing_groups(groups[-1])
            selected = [[chunk[number] for number in wanted] for chunk in groups]
            scored = score_microbatches(self._schedule, self._reference, selected, seq_length) if wanted else []
            nlls = filled(groups[-1], wanted, scored)
        if nlls:
            # The last model chunk of the last stage computes the loss.
            for batch, nll_BS in zip(batches[-1], torch.cat(nlls).split(args.micro_batch_size), strict=True):
                batch["reference_nll"] = nll_BS


@torch.no_grad()
def score_microbatches(
    schedule: Schedule, reference: list[Module], batches: list[list[Batch]], seq_length: int
) -> list[Tensor]:
    """Run the reference over microbatches with Megatron's forward-only schedule.

    Args:
        reference: this rank's model chunks, one for each virtual pipeline stage.
        batches: for each chunk its microbatches of ``--reference-micro-batch-size`` sequences.

    Returns:
        The NLL [B, S] in nats, float32, of each microbatch on the last pipeline stage; elsewhere nothing.
    """
    iterators = [iter(chunk_batches) for chunk_batches in batches]
    return schedule(
        forward_step_func=_reference_step,
        data_iterator=iterators if len(iterators) > 1 else iterators[0],
        model=reference,
        num_microbatches=len(batches[0]),
        seq_length=seq_length,
        micro_batch_size=get_args().reference_micro_batch_size,
        forward_only=True,
        collect_non_loss_data=True,
    )


def read_step(data_iterator: Iterator[dict[str, Any]] | None, vp_stage: int | None) -> list[Batch]:
    """All microbatches of one training step on this rank."""
    args = get_args()
    scored = args.score_store is not None
    return [get_batch(data_iterator, args.micro_batch_size, vp_stage, scored) for _ in range(get_num_microbatches())]


def regroup(batches: list[Batch], size: int, micro_batch_size: int) -> list[Batch]:
    """The same sequences in microbatches of ``size`` sequences, in order."""
    if size == micro_batch_size:
        return batches
    columns: dict[str, tuple[Tensor, ...] | None] = {}
    for key in batches[0]:
        values = [batch[key] for batch in batches]
        columns[key] = None if values[0] is None else torch.cat(values).split(size)
    count = len(batches) * micro_batch_size // size
    return [{key: None if column is None else column[i] for key, column in columns.items()} for i in range(count)]


def _reference_step(data_iterator: Iterator[Batch], model: Module) -> tuple[Tensor, Callable[..., Tensor]]:
    return model_nll(next(data_iterator), model), partial(_keep_nll)


def _keep_nll(nll_BS: Tensor, non_loss_data: bool = False) -> Tensor:
    return nll_BS.detach().float()


class StepClock:
    """Seconds that the reference took in this step, without stopping the GPU to measure them.

    On CUDA two events are recorded and read after the step, when the optimizer has synchronised anyway.
    """

    def __init__(self) -> None:
        self._marks: list[Any] = []

    def start_reference(self) -> None:
        self._marks = [self._now()]

    def stop_reference(self) -> None:
        self._marks.append(self._now())

    def reference_seconds(self) -> float:
        """Seconds between the two marks of the last step; 0 when the step had no reference."""
        if len(self._marks) < 2:
            return 0.0
        start, end = self._marks
        if isinstance(start, float):
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000.0

    @staticmethod
    def _now() -> Any:
        if not torch.cuda.is_available():
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


clock = StepClock()

