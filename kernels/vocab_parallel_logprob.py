"""NLL of the target tokens from logits whose vocabulary is split over tensor-parallel ranks.

Two implementations have the same three functions (``row_statistics``, ``merge``, ``gradient``): plain torch
(:mod:`logprob_torch`, the truth and the CPU's path) and Triton (:mod:`logprob_triton`). This module
adds what they share: one all-gather of three numbers per token (and segment of the row), and the autograd function.

The backward pass needs the logits and each row's maximum and sum of exponentials. These two numbers hold the same
information as a log-sum-exp, but at logits of 1e4 a log-sum-exp in fp32 is off by 5e-4, and so is every probability.

Shape suffixes: S sequence, B microbatch, V vocabulary columns of this rank, N = S * B rows, K parts of a row.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

IMPLEMENTATIONS = ("torch", "triton")


@dataclass(frozen=True)
class Shard:
    """The part of the vocabulary that this rank holds."""

    first: int
    """Vocabulary id of column 0."""
    columns: int
    """Columns that are tokens; those after them pad the vocabulary so that it divides by the number of ranks."""

    @classmethod
    def of(cls, width: int, vocabulary_size: int, group: ProcessGroup | None) -> "Shard":
        """The part of this rank of ``group`` (None: one rank) when each rank has ``width`` columns."""
        first = width * (torch.distributed.get_rank(group) if group is not None else 0)
        return cls(first, min(max(vocabulary_size - first, 0), width))


def vocab_parallel_nll(
    logits_SBV: Tensor,
    targets_SB: Tensor,
    vocabulary_size: int,
    group: ProcessGroup | None = None,
    implementation: str = "torch",
    in_place: bool = False,
) -> Tensor:
    """NLL of the targets, [S, B] in nats: fp32, or float64 for float64 logits (plain torch only).

    What Megatron's ``vocab_parallel_cross_entropy`` computes, without its copies of the logits.

    Args:
        logits_SBV: bf16, fp16 or fp32; this rank's columns of the vocabulary. Rows need not be contiguous in memory.
        targets_SB: int64 ids in the whole vocabulary. -100 gives 0 and no gradient; any other id outside the vocabulary
            gives infinity.
        vocabulary_size: number of tokens; columns beyond it are padding and take no probability.
        group: tensor-parallel group; None or a group of one rank when the vocabulary is whole.
        implementation: one of ``IMPLEMENTATIONS``.
        in_place: whether the backward pass writes the gradient into the logits' memory. It may if nothing else uses
            the logits, and for one backward pass only. The forward pass never changes them.

    Raises:
        ValueError: unknown implementation, or shapes or dtypes that do not fit.
    """
    _check(logits_SBV, targets_SB, implementation)
    targets_N = targets_SB.reshape(-1)
    return _VocabParallelNll.apply(logits_SBV, targets_N, vocabulary_size, group, implementation, in_place)


def choose_implementation(asked: str, device: torch.device) -> str:
    """``auto`` resolved: Triton on CUDA where it is installed, plain torch elsewhere. Other names stay as they are."""
    if asked != "auto":
        return asked
    return "triton" if device.type == "cuda" and importlib.util.find_spec("triton") is not None else "torch"


def load_implementation(name: str) -> ModuleType:
    """The module with ``row_statistics``, ``merge`` and ``gradient``; Triton is imported only where it is used."""
    return importlib.import_module(f"megatron_remit.kernels.logprob_{name}")


def gather_parts(parts_K3N: Tensor, group: ProcessGroup | None) -> Tensor:
    """The statistics of all ranks, in the order of the vocabulary: one collective for everything."""
    ranks = 1 if group is None else torch.distributed.get_world_size(group)
    if ranks == 1:
        return parts_K3N
    gathered = parts_K3N.new_empty(ranks * parts_K3N.size(0), *parts_K3N.shape[1:])
    torch.distributed.all_gather_into_tensor(gathered, parts_K3N, group=group)
    return gathered


class _VocabParallelNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_SBV: Tensor,
        targets_N: Tensor,
        vocabulary_size: int,
        group: ProcessGroup | None,
        implementation: str,
        in_place: bool,
    ) -> Tensor:
        kernels = load_implementation(implementation)
        if logits_SBV.stride(-1) != 1:
            logits_SBV = logits_SBV.contiguous()
        shard = Shard.of(logits_SBV.size(-1), vocabulary_size, group)
        parts_K3N = kernels.row_statistics(logits_SBV, targets_N, shard.first, shard.columns)
        nll_N, normalizer_2N = kernels.merge(gather_parts(parts_K3N, group), targets_N)
        ctx.save_for_backward(logits_SBV, targets_N, normalizer_2N)
        ctx.kernels, ctx.shard, ctx.in_place, ctx.overwritten = kernels, shard, in_place, False
        return nll_N.view(logits_SBV.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output_SB: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.overwritten:
            raise RuntimeError("the first backward pass wrote its gradient over the logits; use in_place=False")
        logits_SBV, targets_N, normalizer_2N = ctx.saved_tensors
        ctx.overwritten = ctx.in_place
        gradient_SBV = logits_SBV if ctx.in_place else torch.empty_like(logits_SBV)
        ctx.kernels.gradient(
            logits_SBV, targets_N, normalizer_2N, grad_output_SB, ctx.shard.first, ctx.shard.columns, gradient_SBV
        )
        return gradient_SBV, None, None, None, None, None


def _check(logits_SBV: Tensor, targets_SB: Tensor, implementation: str) -> None:
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is {implementation!r}, expected one of {IMPLEMENTATIONS}")
    if logits_SBV.dim() != 3 or logits_SBV.shape[:2] != targets_SB.shape:
        raise ValueError(
            f"logits have shape {tuple(logits_SBV.shape)} and targets {tuple(targets_SB.shape)}, expected "
            "[sequence, batch, vocabulary] and [sequence, batch]"
        )
    if targets_SB.dtype != torch.int64:
        raise ValueError(f"targets are {targets_SB.dtype}, expected int64")
    dtypes = {torch.bfloat16, torch.float16, torch.float32}
    if implementation == "torch":
        dtypes.add(torch.float64)
    if logits_SBV.dtype not in dtypes:
        raise ValueError(f"logits are {logits_SBV.dtype}, expected one of {sorted(map(str, dtypes))}")
