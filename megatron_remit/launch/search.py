"""Layouts of a run that fit its GPUs, best first by predicted speed, and why the others fall.

Each combination of parallel sizes passes every check that training makes (``plan_checks``), or falls by its message.
Micro-batch, recomputation and offload change no check but that of the batch; memory and speed are the plan's formulas.
"""

import argparse
import copy
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from megatron_remit.errors import UserError
from megatron_remit.launch.gpus import Gpu
from megatron_remit.launch.memory import estimate
from megatron_remit.launch.plan_checks import Run, check_microbatches, parse, place, place_parsed
from megatron_remit.launch.throughput import Step, predict

RESERVE = 0.1
"""Share of a GPU's memory for what the plan leaves out: NCCL, the CUDA context, fragmentation."""
_ALIKE = 0.01
"""Of layouts whose speed differs by less, the simplest that takes the least memory."""
_SIZES = (1, 2, 4, 8, 16)
_CHUNKS = (1, 2, 4)
_EXPERTS = (1, 2, 4, 8, 16, 32, 64)
_MICRO_BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Layout:
    """One choice, by the values of its flags."""

    tp: int
    pp: int
    virtual: int
    """Model chunks of a pipeline rank; 1 is no virtual pipeline."""
    cp: int
    ep: int
    micro_batch: int = 1
    recompute: bool = False
    offload: bool = False

    def arguments(self) -> dict[str, Any]:
        """The parsed flags of the training program that make it."""
        return {
            "tensor_model_parallel_size": self.tp,
            "sequence_parallel": self.tp > 1,
            "pipeline_model_parallel_size": self.pp,
            "num_virtual_stages_per_pipeline_rank": self.virtual if self.virtual > 1 else None,
            "num_layers_per_virtual_pipeline_stage": None,
            "context_parallel_size": self.cp,
            "expert_model_parallel_size": self.ep,
            "expert_tensor_parallel_size": 1 if self.ep > 1 else None,
            "micro_batch_size": self.micro_batch,
            "reference_micro_batch_size": self.micro_batch,
            "recompute_granularity": "full" if self.recompute else None,
            "recompute_method": "uniform" if self.recompute else None,
            "recompute_num_layers": 1 if self.recompute else None,
            "reference_offload": self.offload,
        }

    def flags(self) -> list[str]:
        """The same as words of a command line, to stand after the run's own flags: the last of a kind wins."""
        words = []
        for name, value in self.arguments().items():
            if value is True:
                words.append(_flag(name))
            elif value not in (None, False):
                words += [_flag(name), str(value)]
        return words


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Candidate:
    """A layout that fits."""

    layout: Layout
    data_parallel: int
    memory: float
    """Bytes of the fullest GPU."""
    step: Step

    def as_json(self) -> dict[str, Any]:
        """The figures, and the flags of the layout."""
        step = self.step
        return {
            **asdict(self.layout),
            "dp": self.data_parallel,
            "memory_bytes": self.memory,
            "tokens_per_second_per_gpu": step.speed,
            "online_over_ntp": step.online,
            "bound": step.bound,
            "seconds": {**step.policy, "reference": step.reference},
            "flags": self.layout.flags(),
        }


@dataclass(frozen=True)
class Search:
    """What was found."""

    fitting: list[Candidate]
    """Best first: of each combination of parallel sizes the fastest."""
    fallen: Counter[str]
    """How many combinations of parallel sizes fell, by the reason."""
    training: list[str]
    """The run's flags without those of its own layout."""


def search(
    base_hf: Path, reference_hf: Path | None, gpus: int, training: list[str], kind: Gpu, gpus_per_node: int
) -> Search:
    """All layouts of the run that ``training`` describes, whose own layout is not looked at.

    Args:
        base_hf, reference_hf: Hugging Face folders, of which only the configs are read.
        gpus: GPUs of the run.
        training: flags of the training program.
        kind: the GPU, whose memory, peak and links decide.
        gpus_per_node: tensor parallelism stays within it.

    Raises:
        UserError: flags that no layout mends, such as a missing --seq-length.
    """
    training = _without_layout(training)
    parsed = parse([*training, "--micro-batch-size", "1"])
    fitting, fallen = [], Counter[str]()
    for layout in _combinations(gpus, gpus_per_node, _has_experts(parsed, base_hf, reference_hf)):
        args = copy.deepcopy(parsed)
        vars(args).update(layout.arguments())
        try:
            run = place_parsed(args, base_hf, reference_hf, gpus)
            fitting.append(_best(run, layout, kind, gpus_per_node))
        except UserError as error:
            fallen[str(error)] += 1
    fitting.sort(key=lambda found: -found.step.speed)
    return Search(fitting, fallen, training)


def check_layout(found: Candidate, base_hf: Path, reference_hf: Path | None, gpus: int, training: list[str]) -> None:
    """Make the checks of training on the flags of ``found``. Raises UserError where one fails."""
    place(base_hf, reference_hf, gpus, [*training, *found.layout.flags()])


def _without_layout(training: list[str]) -> list[str]:
    flags = {_flag(name) for name in Layout(1, 1, 1, 1, 1).arguments()}
    kept, keep = [], True
    for word in training:
        if word.startswith("--"):
            keep = word.split("=")[0] not in flags
        if keep:
            kept.append(word)
    return kept


def _combinations(gpus: int, gpus_per_node: int, experts: bool) -> Iterator[Layout]:
    """Those whose product can divide the GPUs; the rest of the checks is training's."""
    for tp, pp, virtual, cp, ep in itertools.product(_SIZES, _SIZES, _CHUNKS, _SIZES, _EXPERTS if experts else (1,)):
        if tp > gpus_per_node or tp * pp * cp > gpus or (virtual > 1 and pp == 1):
            continue
        yield Layout(tp, pp, virtual, cp, ep)


def _has_experts(parsed: argparse.Namespace, base_hf: Path, reference_hf: Path | None) -> bool:
    args = copy.deepcopy(parsed)
    vars(args).update(Layout(1, 1, 1, 1, 1).arguments())
    return bool(place_parsed(args, base_hf, reference_hf, 1).policy.args.num_experts)


def _best(run: Run, layout: Layout, kind: Gpu, gpus_per_node: int) -> Candidate:
    """The fastest micro-batch, recomputation and offload that fit. Raises UserError if none does."""
    found: list[Candidate] = []
    frozen, copies = list(run.frozen.values()), run.policy.args.data_parallel_size
    offloads = (False, True) if frozen else (False,)
    for micro_batch, recompute, offload in itertools.product(_MICRO_BATCHES, (False, True), offloads):
        one = replace(layout, micro_batch=micro_batch, recompute=recompute, offload=offload)
        _change(run, one)
        try:
            check_microbatches(run.policy.args)
        except UserError:
            if micro_batch == 1:
                raise
            continue
        memory = estimate(run.policy, frozen, run.policy.args.global_batch_size // (micro_batch * copies)).peak
        if memory <= (1 - RESERVE) * kind.memory:
            found.append(Candidate(one, copies, memory, predict(run.policy, frozen, kind, gpus_per_node)))
    if not found:
        raise UserError(f"the smallest micro-batch, with recomputation and offload, does not fit into {kind.name}")
    fastest = max(candidate.step.speed for candidate in found)
    near = [candidate for candidate in found if candidate.step.speed >= (1 - _ALIKE) * fastest]
    return min(near, key=lambda one: (one.layout.offload, one.layout.recompute, one.memory))


def _change(run: Run, layout: Layout) -> None:
    """Give the models of ``run`` the micro-batch, recomputation and offload of ``layout``."""
    chosen = layout.arguments()
    for placed in (run.policy, *run.frozen.values()):
        for name in ("micro_batch_size", "reference_micro_batch_size", "recompute_granularity", "reference_offload"):
            setattr(placed.args, name, chosen[name])
