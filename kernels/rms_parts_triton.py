"""RMSNorm of rows of which each rank holds a part, in Triton: a pass reads a number once, and keeps nothing in fp32.

The scale of a row needs the sums of all ranks, so each direction is two passes with the ranks' exchange between them:
``mean_square``, then ``scaled``; ``mean_product``, then ``gradients``. There are no atomics and no autotuning, and a
row's bits do not depend on its neighbours. The weight's gradient adds the rows of PROGRAMS groups, then the groups.

Shape suffixes: N rows, w columns of this rank, P programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_remit.kernels.rms_triton import constants

PROGRAMS = 512
"""Of the gradients, at most: each adds its rows' part of the weight's gradient in registers."""


@triton.jit
def mean_square_kernel(
    x_ptr,  # [N, w] with strides (stride, 1)
    mean_ptr,  # [N] fp32
    rows, stride, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """ROWS rows: the mean of the squares."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    here = (row < rows) & (column < width)
    wide = tl.load(x_ptr + row * stride + column, mask=here, other=0.0).to(tl.float32)
    tl.store(mean_ptr + row, tl.sum(wide * wide, axis=1, keep_dims=True) / width, mask=row < rows)


@triton.jit
def scaled_kernel(
    x_ptr,  # [N, w] with strides (stride, 1)
    weight_ptr,  # [w]
    mean_ptr,  # [N] fp32
    out_ptr,  # [N, w], contiguous
    rows, stride, width, eps,
    CAST_FIRST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """ROWS rows: ``x / sqrt(mean + eps) * weight``, cast before the weight or after it."""
    # A column of numbers would be loaded by each thread for each of its elements; a list of them is loaded once.
    index = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    scale = 1.0 / tl.sqrt(tl.load(mean_ptr + index, mask=index < rows, other=1.0) + eps)
    row, column = index[:, None], tl.arange(0, COLUMNS)[None, :]
    here = (row < rows) & (column < width)
    normed = tl.load(x_ptr + row * stride + column, mask=here, other=0.0).to(tl.float32) * scale[:, None]
    if CAST_FIRST:
        normed = normed.to(out_ptr.dtype.element_ty).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * width + column, (normed * weight).to(out_ptr.dtype.element_ty), mask=here)


@triton.jit
def mean_product_kernel(
    x_ptr,  # [N, w] with strides (stride, 1)
    weight_ptr,  # [w]
    grad_ptr,  # [N, w] with strides (grad_stride, 1)
    mean_ptr,  # [N] fp32
    rows, stride, grad_stride, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """ROWS rows: the mean of ``x * weight * grad``."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    here = (row < rows) & (column < width)
    wide = tl.load(x_ptr + row * stride + column, mask=here, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * grad_stride + column, mask=here, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    tl.store(mean_ptr + row, tl.sum(wide * (weight * grad), axis=1, keep_dims=True) / width, mask=row < rows)


@triton.jit
def gradients_kernel(
    x_ptr,  # [N, w] with strides (stride, 1)
    weight_ptr,  # [w]
    grad_ptr,  # [N, w] with strides (grad_stride, 1)
    square_ptr, product_ptr,  # [N] fp32: the means over whole rows
    out_ptr,  # [N, w], contiguous: the input's gradient
    part_ptr,  # [P, w] fp32: this program's part of the weight's gradient
    rows, stride, grad_stride, width, eps, turns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``turns`` times ROWS rows: both gradients, the cast in the middle counting as the identity."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)[None, :]
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    part = tl.zeros((ROWS, COLUMNS), tl.float32)
    for turn in range(turns):
        index = (program * turns + turn) * ROWS + tl.arange(0, ROWS)
        scale = 1.0 / tl.sqrt(tl.load(square_ptr + index, mask=index < rows, other=1.0) + eps)
        product = scale * tl.load(product_ptr + index, mask=index < rows, other=0.0)
        row = index[:, None]
        here = (row < rows) & (column < width)
        normed = tl.load(x_ptr + row * stride + column, mask=here, other=0.0).to(tl.float32) * scale[:, None]
        grad = tl.load(grad_ptr + row * grad_stride + column, mask=here, other=0.0).to(tl.float32)
        part += grad * normed
        out = scale[:, None] * (weight * grad - normed * product[:, None])
        tl.store(out_ptr + row * width + column, out.to(out_ptr.dtype.element_ty), mask=here)
    total = tl.sum(part, axis=0, keep_dims=True)
    tl.store(part_ptr + program * width + column, total, mask=column < width)


def mean_square(x: Tensor, out: Tensor) -> None:
    """Write the mean of x^2 over the last dimension to ``out``, [.., 1] fp32 contiguous."""
    x_Nw = _rows(x)
    rows, width = x_Nw.shape
    chosen, warps = constants(width)
    if rows:
        grid = (triton.cdiv(rows, chosen["ROWS"]),)
        mean_square_kernel[grid](x_Nw, out, rows, x_Nw.stride(0), width, **chosen, num_warps=warps)


def scaled(x: Tensor, mean: Tensor, weight: Tensor, eps: float, cast_first: bool) -> Tensor:
    """``x / sqrt(mean + eps) * weight`` in x's dtype, contiguous. ``mean``, [.., 1] fp32, is that of whole rows.

    ``cast_first``: cast before the weight is applied.
    """
    x_Nw = _rows(x)
    rows, width = x_Nw.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    chosen, warps = constants(width)
    if rows:
        scaled_kernel[(triton.cdiv(rows, chosen["ROWS"]),)](
            x_Nw, weight, mean, out, rows, x_Nw.stride(0), width, eps, CAST_FIRST=cast_first, **chosen, num_warps=warps
        )
    return out


def mean_product(x: Tensor, weight: Tensor, grad: Tensor, out: Tensor) -> None:
    """Write the mean of x * weight * grad over the last dimension to ``out``, [.., 1] fp32 contiguous."""
    x_Nw, grad_Nw = _rows(x), _rows(grad)
    rows, width = x_Nw.shape
    chosen, warps = constants(width)
    if rows:
        mean_product_kernel[(triton.cdiv(rows, chosen["ROWS"]),)](
            x_Nw, weight, grad_Nw, out, rows, x_Nw.stride(0), grad_Nw.stride(0), width, **chosen, num_warps=warps
        )


def gradients(
    x: Tensor, weight: Tensor, grad: Tensor, square: Tensor, product: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradients of x, contiguous, and of the weight [w], from that of :func:`scaled`'s output.

    ``square`` and ``product``, [.., 1] fp32: the means of :func:`mean_square` and :func:`mean_product` of whole rows.
    """
    x_Nw, grad_Nw = _rows(x), _rows(grad)
    rows, width = x_Nw.shape
    chosen, warps = constants(width)
    blocks = triton.cdiv(rows, chosen["ROWS"])
    turns = max(triton.cdiv(blocks, PROGRAMS), 1)
    programs = triton.cdiv(blocks, turns)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    parts_Pw = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    if rows:
        gradients_kernel[(programs,)](
            x_Nw, weight, grad_Nw, square, product, out, parts_Pw,
            rows, x_Nw.stride(0), grad_Nw.stride(0), width, eps, turns, **chosen, num_warps=warps,
        )  # fmt: skip
    return out, parts_Pw.sum(0).to(weight.dtype)


def _rows(x: Tensor) -> Tensor:
    """[N, w] whose columns lie side by side."""
    x_Nw = x.reshape(-1, x.size(-1))
    return x_Nw if x_Nw.stride(1) == 1 else x_Nw.contiguous()
