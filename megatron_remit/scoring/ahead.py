"""Score ahead: before each training step, the reference's NLL of the step's tokens.

Megatron's schedule for the step is wrapped. The wrapper reads the step's microbatches, runs the reference over them
with the same schedule in forward-only mode, and then lets the policy train on the same microbatches, each with one
more column: ``reference_nll``, or what else the objective asks of the reference. The reference's pipeline drain
overlaps the policy's fill, and interleaved schedules need no special tensor shapes. Evaluation passes straight through.

The reference's values live for one step: they hang on its microbatches, which go when the schedule has consumed them.

Never score inside the policy's forward step: the last stage would wait for policy activations while the first stage
sends the reference's.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.distributed import DistributedDataParallel
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.training import get_args
from torch import Tensor
from torch.nn import Module

from megatron_remit.data.batch import Batch, get_batch, regroup, set_column, with_visible_spans
from megatron_remit.nll import Output, Vocabulary, nll_output, run_model
from megatron_remit.objectives.base import Objective, Step
from megatron_remit.objectives.registry import current_objective
from megatron_remit.reference.offload import resident
from megatron_remit.scoring.arguments import stored_columns
from megatron_remit.scoring.online import filled, missing_groups, shares_experts

Schedule = Callable[..., Any]
"""What Megatron's ``get_forward_backward_func`` returns. It gives losses by microbatch, or with
``collect_non_loss_data`` what the forward step collects."""


@dataclass(frozen=True)
class Base:
    """The reference's base, for objectives with two references."""

    chunks: list[Module]
    """This rank's model chunks, one for each virtual pipeline stage."""
    vocabulary: Vocabulary
    """The rows that policy and base both have."""


class ScoreAhead:
    """Wraps the function that Megatron's ``get_forward_backward_func`` returned."""

    def __init__(self, reference: list[Module], base: Base | None, schedule: Schedule) -> None:
        """``reference`` holds this rank's model chunks, one for each virtual pipeline stage; none when every score
        comes from a store. ``base`` is None when its scores do, or when the objective has one reference."""
        self._reference = reference
        self._base = base
        self._schedule = schedule

    def __call__(self, *, data_iterator: Any, forward_only: bool, **kwargs: Any) -> list[dict[str, Tensor]]:
        """Megatron's schedule signature; returns what the policy's schedule returns."""
        objective = current_objective()
        if forward_only or not objective.looks_ahead():
            return self._schedule(data_iterator=data_iterator, forward_only=forward_only, **kwargs)
        chunked = isinstance(data_iterator, list)
        iterators = data_iterator if chunked else [data_iterator]
        clock.start_reference()
        start_param_gather(kwargs["model"])
        batches = [
            read_step(objective, iterator, vp_stage if chunked else None) for vp_stage, iterator in enumerate(iterators)
        ]
        seq_length = kwargs["seq_length"]
        if objective.needs_reference and self._reference:
            self._add_reference_column(objective, batches, seq_length)
        if objective.needs_base and self._base is not None:
            self._add_base_column(self._base, batches, seq_length)
        policy_nll = partial(self._policy_nll, kwargs["model"], batches, seq_length)
        objective.look_ahead(Step(batches, self._reference, policy_nll))
        clock.stop_reference()
        ready = [iter(chunk_batches) for chunk_batches in batches]
        return self._schedule(data_iterator=ready if chunked else ready[0], forward_only=False, **kwargs)

    def _add_reference_column(self, objective: Objective, batches: list[list[Batch]], seq_length: int) -> None:
        """Put what the objective asks of the reference into the last model chunk's batches.

        With a score store only the reference microbatches that hold a row it lacks are run.
        """
        args = get_args()
        size, output = args.reference_micro_batch_size, objective.reference_output()
        groups = [regroup(chunk, size, args.micro_batch_size) for chunk in batches]
        run_reference = partial(score_microbatches, self._schedule, self._reference)
        if args.score_store is None:
            values = run_reference(groups, output, size, seq_length)
        else:
            wanted = missing_groups(groups[-1], args, shares_experts(self._reference))
            selected = [[chunk[number] for number in wanted] for chunk in groups]
            scored = run_reference(selected, output, size, seq_length) if wanted else []
            values = filled(groups[-1], wanted, scored, args)
        _set_columns(batches, objective.reference_column, values)

    def _add_base_column(self, base: Base, batches: list[list[Batch]], seq_length: int) -> None:
        """Put the NLLs of the reference's base into the last model chunk's batches."""
        args = get_args()
        size = args.reference_micro_batch_size
        groups = [regroup(chunk, size, args.micro_batch_size) for chunk in batches]
        output = nll_output(base.vocabulary)
        nlls = score_microbatches(self._schedule, base.chunks, groups, output, size, seq_length)
        _set_columns(batches, "base_nll", nlls)

    def _policy_nll(self, model: list[Module] | Module, batches: list[list[Batch]], seq_length: int) -> list[Tensor]:
        """The policy's NLL of each microbatch before the step, without dropout (see :class:`Step`)."""
        args = get_args()
        chunks = model if isinstance(model, list) else [model]
        for chunk in chunks:
            chunk.eval()
        output = nll_output(Vocabulary.of(args))
        nlls = score_microbatches(self._schedule, chunks, batches, output, args.micro_batch_size, seq_length)
        for chunk in chunks:
            chunk.train()
        return nlls


def _set_columns(batches: list[list[Batch]], name: str, values: Sequence[Tensor]) -> None:
    """Set a column of the last model chunk's microbatches, which compute the loss, from values that may be cut into
    other microbatches; a rank without values has nothing to set."""
    size = get_args().micro_batch_size
    if values and len(values[0]) != size:
        values = torch.cat(tuple(values)).split(size)
    if values:
        for batch, value in zip(batches[-1], values, strict=True):
            set_column(batch, name, value)


@torch.no_grad()
def score_microbatches(
    schedule: Schedule, chunks: list[Module], batches: list[list[Batch]], output: Output, size: int, seq_length: int
) -> list[Tensor]:
    """Run a model over microbatches with Megatron's forward-only schedule.

    Args:
        chunks: this rank's model chunks, one for each virtual pipeline stage.
        batches: for each chunk its microbatches of ``size`` sequences.
        output: what the last pipeline stage computes, batch first.

    Returns:
        ``output`` of each microbatch on the last pipeline stage; elsewhere nothing.
    """
    iterators = [iter(chunk_batches) for chunk_batches in batches]
    with resident(chunks):
        return schedule(
            forward_step_func=partial(_forward_step, output),
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=chunks,
            num_microbatches=len(batches[0]),
            seq_length=seq_length,
            micro_batch_size=size,
            forward_only=True,
            collect_non_loss_data=True,
        )


def read_step(
    objective: Objective, data_iterator: Iterator[dict[str, Any]] | None, vp_stage: int | None
) -> list[Batch]:
    """All microbatches of one training step on this rank, their sequences numbered by their place in the run."""
    args = get_args()
    size, ranks = args.micro_batch_size, mpu.get_data_parallel_world_size()
    batches = []
    for index in range(get_num_microbatches()):
        batch = with_visible_spans(
            get_batch(data_iterator, size, vp_stage, stored_columns(args), objective.batch_columns)
        )
        # Megatron's sampler gives each data-parallel rank a microbatch in turn.
        first = args.consumed_train_samples + (index * ranks + mpu.get_data_parallel_rank()) * size
        batch["sample"] = torch.arange(first, first + size)
        batches.append(batch)
    return batches


def _forward_step(
    output: Output, data_iterator: Iterator[Batch], model: Module
) -> tuple[Tensor, Callable[..., Tensor]]:
    return run_model(next(data_iterator), model, output), partial(_stored, output.stored_dtype)


def _stored(dtype: torch.dtype, value: Tensor, non_loss_data: bool = False) -> Tensor:
    return value.detach().to(dtype)


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


def start_param_gather(policy: list[Module] | Module) -> None:
    """Start the policy's parameter all-gathers, so that they travel while the reference computes.

    With ``--overlap-param-gather`` Megatron starts each bucket's when the forward pass needs the bucket before, so the
    first one is waited for, and all of them share the network with the policy's own communication. The forward pass
    waits for each as always.

    Does nothing where Megatron gathers elsewhere: without the overlap, in the first step, aligned over the stages
    (``--align-param-gather``) or during the optimizer's step, and with Megatron's FSDP.
    """
    for chunk in policy if isinstance(policy, list) else [policy]:
        if not isinstance(chunk, DistributedDataParallel) or not chunk.ddp_config.overlap_param_gather:
            continue
        hooks_on = bool(chunk.remove_forward_pre_hook_handles)  # off means that the parameters are whole already
        elsewhere = chunk.ddp_config.align_param_gather or chunk.overlap_param_gather_with_optimizer_step
        buckets = chunk.bucket_groups + chunk.expert_parallel_bucket_groups
        if hooks_on and not elsewhere and not any(bucket.param_gather_dispatched for bucket in buckets):
            chunk.start_param_sync()
