"""RMSNorm that is cast before the weight is applied, in Triton: a number is read once and written once.

torch's fused kernel applies the weight in fp32 only, so that this rounding takes a second kernel over its output. The
backward pass is torch's own, which wants the scale of each row. There are no atomics and no autotuning, and a row's
bits do not depend on its neighbours.

Shape suffixes: N rows, H columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MIN_ELEMENTS = 2048
"""Of a program: it takes several rows where they are short."""
MAX_WARPS = 16


@triton.jit
def cast_first_kernel(
    x_ptr,  # [N, H] with strides (stride, 1)
    weight_ptr,  # [H]
    out_ptr,  # [N, H], contiguous
    scale_ptr,  # [N] fp32
    rows, stride, width, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """ROWS whole rows: ``scale = 1 / rms(x)`` and ``cast(x * scale) * weight``."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    here = (row < rows) & (column < width)
    wide = tl.load(x_ptr + row * stride + column, mask=here, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=1, keep_dims=True) / width + eps)
    normed = (wide * scale).to(out_ptr.dtype.element_ty).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * width + column, (normed * weight).to(out_ptr.dtype.element_ty), mask=here)
    tl.store(scale_ptr + row, scale, mask=row < rows)


def constants(width: int) -> tuple[dict[str, int], int]:
    """The kernel's compile-time constants for rows of ``width`` columns, and its warps."""
    columns = triton.next_power_of_2(width)
    rows = max(MIN_ELEMENTS // columns, 1)
    # 16 columns of a thread: two loads of 16 bytes in flight.
    return {"ROWS": rows, "COLUMNS": columns}, min(rows * columns // (32 * 16), MAX_WARPS)


def cast_first(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``cast(x / rms(x)) * weight`` over the last dimension, contiguous, and ``1 / rms(x)``, [.., 1] fp32."""
    x_NH = x.reshape(-1, x.size(-1))
    if x_NH.stride(1) != 1:
        x_NH = x_NH.contiguous()
    rows, width = x_NH.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    scale = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
    chosen, warps = constants(width)
    if rows:
        cast_first_kernel[(triton.cdiv(rows, chosen["ROWS"]),)](
            x_NH, weight, out, scale, rows, x_NH.stride(0), width, eps, **chosen, num_warps=warps
        )
    return out, scale
