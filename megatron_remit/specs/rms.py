"""The arithmetic of RMSNorm: torch's fused kernels on a GPU, and over tensor-parallel ranks no fp32 copies that wait
for the backward pass.

Traffic in bf16 is 10 bytes per number of a norm's input in 2 kernels, forward and backward together
(``benchmarks/traffic.py``). Kept for the backward pass: the input as it is, and one number per row.

Shapes: S sequence, B micro-batch, H the last dimension, W a whole projection width, w its part on this rank (W / TP).
"""

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from megatron_remit.kernels.vocab_parallel_logprob import choose_implementation


def rms_norm(x: Tensor, weight: Tensor, eps: float, cast_first: bool) -> Tensor:
    """``x / rms(x) * weight`` over the last dimension, [.., H] -> [.., H] of x's dtype, computed in fp32.

    ``cast_first``: cast to x's dtype before the weight is applied (HF ``LlamaRMSNorm``), else after it (HF
    ``Olmo2RMSNorm``). Without CUDA the operations are those of transformers in their order, so the bits are too. On
    CUDA torch's kernel adds in another order, and the gradients of ``cast_first`` are not rounded in the middle.
    """
    if x.is_cuda and x.dtype == weight.dtype:
        if cast_first:
            return FusedCastFirst.apply(x, weight, eps)
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)
    wide = x.float()
    return _scaled(wide, _mean_square(wide), weight, eps, cast_first, x.dtype)


class FusedCastFirst(torch.autograd.Function):
    """:func:`rms_norm` with ``cast_first``: forward in Triton where it is installed, since torch's fused kernel applies
    the weight in fp32 only; backward from torch's fused kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if choose_implementation("auto", x.device) == "triton":
            out, scale = importlib.import_module("megatron_remit.kernels.rms_triton").cast_first(x, weight, eps)
        else:
            out, scale = torch.ops.aten._fused_rms_norm(x, x.shape[-1:], None, eps)
            out.mul_(weight)
        ctx.save_for_backward(x, scale, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, weight = ctx.saved_tensors
        # The cast counts as the identity, as it does for autograd: then both kinds of norm have one gradient.
        wanted = [bool(needed) for needed in ctx.needs_input_grad[:2]]
        gradients = torch.ops.aten._fused_rms_norm_backward(
            grad_output.contiguous(), x, x.shape[-1:], scale, weight, wanted
        )
        return *(gradient if needed else None for gradient, needed in zip(gradients, wanted, strict=True)), None


class PairOverRanks(torch.autograd.Function):
    """RMSNorm of two tensors over widths of which each rank of a group holds an equal part.

    Called with ``(x_SBw, y_SBw, x's weight, y's weight, eps, cast_first, group)``; the two may differ in width. The two
    sums of squares travel in one all-reduce of [2, S, B, 1] fp32, and so do their gradients: the scale of every rank's
    entries depends on every rank's entries. The backward pass makes the fp32 copies again, one tensor at a time.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *tensors, eps, cast_first, group = arguments
        inputs, weights = tensors[:2], tensors[2:]
        # The mean over W is the mean of the ranks' means, since every rank holds W / TP entries.
        means_2SB1 = torch.stack([_mean_square(each.float()) for each in inputs]) / group.size()
        torch.distributed.all_reduce(means_2SB1, group=group)
        ctx.save_for_backward(*tensors, means_2SB1)
        ctx.eps, ctx.cast_first, ctx.group = eps, cast_first, group
        first, second = (
            _scaled(x.float(), mean, weight, eps, cast_first, x.dtype)
            for x, mean, weight in zip(inputs, means_2SB1.unbind(0), weights, strict=True)
        )
        return first, second

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, means_2SB1 = ctx.saved_tensors
        inputs, weights, parts = tensors[:2], tensors[2:], []
        for x, weight, mean, grad in zip(inputs, weights, means_2SB1.unbind(0), grad_outputs, strict=True):
            with torch.enable_grad():
                leaves = [each.detach().requires_grad_() for each in (x.float(), mean, weight)]
                out = _scaled(leaves[0], leaves[1], leaves[2], ctx.eps, ctx.cast_first, x.dtype)
            parts.append(torch.autograd.grad(out, leaves, grad))
        means_grad_2SB1 = torch.stack([of_mean for _, of_mean, _ in parts])
        torch.distributed.all_reduce(means_grad_2SB1, group=ctx.group)
        means_grad_2SB1 /= ctx.group.size()
        of_inputs = [
            of_wide.add_(_mean_square_gradient(x.float(), of_mean)).to(x.dtype)
            for x, of_mean, (of_wide, _, _) in zip(inputs, means_grad_2SB1.unbind(0), parts, strict=True)
        ]
        return *of_inputs, *(of_weight for _, _, of_weight in parts), None, None, None


def rms_norm_pair(
    x_SBw: Tensor, y_SBw: Tensor, weights: tuple[Tensor, Tensor], eps: float, cast_first: bool, group: ProcessGroup
) -> tuple[Tensor, Tensor]:
    """:func:`rms_norm` of two tensors whose whole widths the ranks of ``group`` share equally."""
    if group.size() == 1:
        return rms_norm(x_SBw, weights[0], eps, cast_first), rms_norm(y_SBw, weights[1], eps, cast_first)
    return PairOverRanks.apply(x_SBw, y_SBw, *weights, eps, cast_first, group)


def _mean_square(wide: Tensor) -> Tensor:
    return wide.square().mean(-1, keepdim=True)


def _mean_square_gradient(wide: Tensor, grad: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = wide.requires_grad_()
        return torch.autograd.grad(_mean_square(leaf), leaf, grad)[0]


def _scaled(wide: Tensor, mean: Tensor, weight: Tensor, eps: float, cast_first: bool, dtype: torch.dtype) -> Tensor:
    normed = wide * torch.rsqrt(mean + eps)
    if cast_first:
        return normed.to(dtype) * weight
    return (normed * weight.float()).to(dtype)
