"""The arithmetic of RMSNorm: fused kernels on a GPU, and over tensor-parallel ranks no fp32 copies that wait for the
backward pass.

Traffic in bf16 is 10 bytes per number of a norm's input in 2 kernels, forward and backward together, and 16 where ranks
share a row, since each direction then reads its input twice (``benchmarks/traffic.py``). Kept for the backward pass:
the input as it is, and one number per row.

Shapes: S sequence, B micro-batch, H the last dimension, W a whole projection width, w its part on this rank (W / TP).
"""

import importlib
from collections.abc import Sequence
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
    """RMSNorm of two tensors over widths of which each rank of a group holds an equal part, in single operators.

    Called with ``(x_SBw, y_SBw, x's weight, y's weight, eps, cast_first, group)``; the two may differ in width. The two
    sums of squares travel in one all-reduce of [2, S, B, 1] fp32, and so do their gradients: the scale of every rank's
    entries depends on every rank's entries. The backward pass makes the fp32 copies again, one tensor at a time.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *tensors, eps, cast_first, group = arguments
        inputs, weights = tensors[:2], tensors[2:]
        means_2SB1 = torch.stack([_mean_square(each.float()) for each in inputs])
        _mean_over_ranks(means_2SB1, group)
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
        _mean_over_ranks(means_grad_2SB1, ctx.group)
        of_inputs = [
            of_wide.add_(_mean_square_gradient(x.float(), of_mean)).to(x.dtype)
            for x, of_mean, (of_wide, _, _) in zip(inputs, means_grad_2SB1.unbind(0), parts, strict=True)
        ]
        return *of_inputs, *(of_weight for _, _, of_weight in parts), None, None, None


class FusedPairOverRanks(torch.autograd.Function):
    """:class:`PairOverRanks` in Triton, with the same two all-reduces. The cast before the weight counts as the
    identity in the backward pass, as in :class:`FusedCastFirst`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *tensors, eps, cast_first, group = arguments
        kernels = importlib.import_module("megatron_remit.kernels.rms_parts_triton")
        inputs, weights = tensors[:2], tensors[2:]
        squares_2SB1 = _numbers_of_rows(inputs)
        for x, square in zip(inputs, squares_2SB1.unbind(0), strict=True):
            kernels.mean_square(x, square)
        _mean_over_ranks(squares_2SB1, group)
        ctx.save_for_backward(*tensors, squares_2SB1)
        ctx.kernels, ctx.eps, ctx.group = kernels, eps, group
        first, second = (
            kernels.scaled(x, square, weight, eps, cast_first)
            for x, square, weight in zip(inputs, squares_2SB1.unbind(0), weights, strict=True)
        )
        return first, second

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, squares_2SB1 = ctx.saved_tensors
        products_2SB1 = _numbers_of_rows(tensors[:2])
        parts = list(zip(tensors[:2], tensors[2:], grad_outputs, strict=True))
        for part, product in zip(parts, products_2SB1.unbind(0), strict=True):
            ctx.kernels.mean_product(*part, product)
        _mean_over_ranks(products_2SB1, ctx.group)
        means = zip(squares_2SB1.unbind(0), products_2SB1.unbind(0), strict=True)
        found = [ctx.kernels.gradients(*part, *mean, ctx.eps) for part, mean in zip(parts, means, strict=True)]
        return *(of_input for of_input, _ in found), *(of_weight for _, of_weight in found), None, None, None


def rms_norm_pair(
    x_SBw: Tensor, y_SBw: Tensor, weights: tuple[Tensor, Tensor], eps: float, cast_first: bool, group: ProcessGroup
) -> tuple[Tensor, Tensor]:
    """:func:`rms_norm` of two tensors whose whole widths the ranks of ``group`` share equally."""
    if group.size() == 1:
        return rms_norm(x_SBw, weights[0], eps, cast_first), rms_norm(y_SBw, weights[1], eps, cast_first)
    tensors = (x_SBw, y_SBw, *weights)
    one_dtype = len({tensor.dtype for tensor in tensors}) == 1
    fused = one_dtype and choose_implementation("auto", x_SBw.device) == "triton"
    return (FusedPairOverRanks if fused else PairOverRanks).apply(*tensors, eps, cast_first, group)


def _numbers_of_rows(inputs: Sequence[Tensor]) -> Tensor:
    """Room for one fp32 number per row of each input."""
    return inputs[0].new_empty(len(inputs), *inputs[0].shape[:-1], 1, dtype=torch.float32)


def _mean_over_ranks(numbers: Tensor, group: ProcessGroup) -> None:
    """In place. The mean over W is the mean of the ranks' means, since every rank holds W / TP entries."""
    torch.distributed.all_reduce(numbers, group=group)
    numbers /= group.size()


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
