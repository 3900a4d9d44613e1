"""Vocabulary-parallel NLL in Triton: the functions of :mod:`megatron_remit.kernels.logprob_torch` for a GPU.

* ``row_statistics`` reads the logits once and keeps a running maximum and a running sum in fp32.
* ``merge`` joins the parts of a row, whether they are segments of one rank or shards of several.
* ``gradient`` reads the logits once and writes once, into the logits where the caller allows it.

How a program reads. A row is cut into segments of a fixed number of columns, whatever the number of rows, so that few
rows fill a GPU too and a row's bits do not depend on its neighbours. A program takes one segment in tiles of
[UNROLL, LANES, VECTOR]: a thread owns one lane of LANES and reads VECTOR neighbouring columns with one 16-byte load,
UNROLL of them in flight. Each lane has a maximum and a sum of its own, so nothing is exchanged between threads before
the segment's end. Only the last tile is masked.

Row offsets are int64: [8192, 262144] already has 2^31 elements. There are no atomics and no autotuning: the same input
gives the same bits.

Shape suffixes: S sequence, B microbatch, V vocabulary columns of this rank, N = S * B rows, K parts of a row.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_remit.kernels.logprob_torch import IGNORED

LOG2_E = tl.constexpr(1.4426950408889634)
MINUS_INFINITY = tl.constexpr(float("-inf"))
_IGNORED = tl.constexpr(IGNORED)


@dataclass(frozen=True)
class Configuration:
    """How a program is cut. Every field changes the speed and the order of summation."""

    num_warps: int
    unroll: int
    """16-byte loads that a thread has in flight."""
    tiles: int
    """Tiles of a segment."""

    def constants(self, dtype: torch.dtype) -> dict[str, int]:
        """The kernels' compile-time constants for logits of ``dtype``."""
        return {
            "LANES": 32 * self.num_warps,
            "VECTOR": 16 // dtype.itemsize,
            "UNROLL": self.unroll,
            "TILES": self.tiles,
        }

    def segments(self, width: int, dtype: torch.dtype) -> int:
        """Segments of a row of ``width`` columns."""
        constants = self.constants(dtype)
        return triton.cdiv(max(width, 1), constants["LANES"] * constants["VECTOR"] * self.unroll * self.tiles)


# A segment is 32768 columns of 16 bits: 64 KiB for a program to read. The gradient needs more registers per column, so
# it takes fewer columns at a time and leaves room for more programs.
statistics_configuration = Configuration(num_warps=8, unroll=4, tiles=4)
gradient_configuration = Configuration(num_warps=8, unroll=2, tiles=8)
MERGE_BLOCK = 128


@triton.jit
def _row_offset(row, batch, stride_s, stride_b):
    """Offset in elements of row ``s * batch + b``, in 64 bits."""
    return (row // batch).to(tl.int64) * stride_s + (row % batch).to(tl.int64) * stride_b


@triton.jit
def _tile_columns(LANES: tl.constexpr, VECTOR: tl.constexpr, UNROLL: tl.constexpr):
    """Columns of a tile, [UNROLL, LANES, VECTOR], from 0."""
    repeat = tl.arange(0, UNROLL)[:, None, None] * (LANES * VECTOR)
    return repeat + tl.arange(0, LANES)[None, :, None] * VECTOR + tl.arange(0, VECTOR)[None, None, :]


@triton.jit
def _fold(tile, running_max, running_sum):
    """Add a tile to each lane's running maximum and sum: one rescale per UNROLL * VECTOR exponentials of a lane."""
    values = tile.to(tl.float32)
    new_max = tl.maximum(running_max, tl.max(tl.max(values, axis=2), axis=0))
    # A lane that has seen nothing but -inf shifts by 0: -inf - -inf would be NaN.
    shift = tl.where(new_max == MINUS_INFINITY, 0.0, new_max)
    # Subtracted before the factor: products of two large numbers would lose their difference to rounding.
    exponentials = tl.exp2((values - shift[None, :, None]) * LOG2_E)
    running_sum = running_sum * tl.exp2((running_max - shift) * LOG2_E)
    return new_max, running_sum + tl.sum(tl.sum(exponentials, axis=2), axis=0)


@triton.jit(do_not_specialize=["first"])
def row_statistics_kernel(
    logits_ptr,  # [S, B, V] with strides (stride_s, stride_b, 1)
    targets_ptr,  # [N] int64
    statistics_ptr,  # [K, 3, N] fp32
    rows, batch, stride_s, stride_b, segments, first, columns,
    LANES: tl.constexpr, VECTOR: tl.constexpr, UNROLL: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Maximum, sum of exponentials and target logit of one segment of one row."""
    TILE: tl.constexpr = LANES * VECTOR * UNROLL
    row = tl.program_id(0) // segments
    segment = tl.program_id(0) % segments
    row_ptr = logits_ptr + _row_offset(row, batch, stride_s, stride_b)
    tile_columns = _tile_columns(LANES, VECTOR, UNROLL)
    begin = segment * (TILES * TILE)
    end = tl.maximum(tl.minimum(begin + TILES * TILE, columns), begin)
    target = tl.load(targets_ptr + row)
    if target == _IGNORED:
        # Nobody asks for this row: it is not read.
        end = begin
    whole_end = begin + (end - begin) // TILE * TILE
    running_max = tl.full([LANES], MINUS_INFINITY, tl.float32)
    running_sum = tl.zeros([LANES], tl.float32)
    for start in range(begin, whole_end, TILE):
        tile = tl.load(row_ptr + start + tile_columns, eviction_policy="evict_first")
        running_max, running_sum = _fold(tile, running_max, running_sum)
    if whole_end < end:
        at = whole_end + tile_columns
        tile = tl.load(row_ptr + at, mask=at < end, other=MINUS_INFINITY, eviction_policy="evict_first")
        running_max, running_sum = _fold(tile, running_max, running_sum)
    segment_max = tl.max(running_max, axis=0)
    shift = tl.where(segment_max == MINUS_INFINITY, 0.0, segment_max)
    segment_sum = tl.sum(running_sum * tl.exp2((running_max - shift) * LOG2_E), axis=0)
    local = target - first
    here = (local >= begin) & (local < end)
    target_logit = tl.load(row_ptr + local, mask=here, other=MINUS_INFINITY).to(tl.float32)
    out_ptr = statistics_ptr + segment.to(tl.int64) * 3 * rows + row
    tl.store(out_ptr, segment_max)
    tl.store(out_ptr + rows, segment_sum)
    tl.store(out_ptr + 2 * rows, target_logit)


@triton.jit
def merge_kernel(
    statistics_ptr,  # [K, 3, N] fp32
    targets_ptr,  # [N] int64
    nll_ptr,  # [N] fp32
    normalizer_ptr,  # [2, N] fp32: maximum, sum of exponentials
    rows, parts,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Join the parts of BLOCK rows, in the order of the vocabulary."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < rows
    row_max = tl.full([BLOCK], MINUS_INFINITY, tl.float32)
    target_logit = tl.full([BLOCK], MINUS_INFINITY, tl.float32)
    part_ptr = statistics_ptr + row
    for _ in range(parts):
        row_max = tl.maximum(row_max, tl.load(part_ptr, mask=mask))
        target_logit = tl.maximum(target_logit, tl.load(part_ptr + 2 * rows, mask=mask))
        part_ptr += 3 * rows
    shift = tl.where(row_max == MINUS_INFINITY, 0.0, row_max)
    row_sum = tl.zeros([BLOCK], tl.float32)
    part_ptr = statistics_ptr + row
    for _ in range(parts):
        part_max = tl.load(part_ptr, mask=mask)
        row_sum += tl.load(part_ptr + rows, mask=mask) * tl.exp2((part_max - shift) * LOG2_E)
        part_ptr += 3 * rows
    nll = tl.log(row_sum) - (target_logit - row_max)
    nll = tl.where(tl.load(targets_ptr + row, mask=mask) == _IGNORED, 0.0, nll)
    tl.store(nll_ptr + row, nll, mask=mask)
    tl.store(normalizer_ptr + row, row_max, mask=mask)
    tl.store(normalizer_ptr + rows + row, row_sum, mask=mask)


@triton.jit(do_not_specialize=["first", "grad_stride_s", "grad_stride_b"])
def gradient_kernel(
    logits_ptr,  # [S, B, V] with strides (stride_s, stride_b, 1)
    gradient_ptr,  # [S, B, V] with strides (out_stride_s, out_stride_b, 1); may be logits_ptr
    targets_ptr,  # [N] int64
    normalizer_ptr,  # [2, N] fp32: maximum, sum of exponentials
    grad_output_ptr,  # [S, B] with any strides, 0 too
    rows, batch, stride_s, stride_b, out_stride_s, out_stride_b, grad_stride_s, grad_stride_b,
    segments, first, columns, width,
    LANES: tl.constexpr, VECTOR: tl.constexpr, UNROLL: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """``(softmax - one_hot) * grad_output`` of one segment of one row; 0 in the padding, columns to width."""
    TILE: tl.constexpr = LANES * VECTOR * UNROLL
    row = tl.program_id(0) // segments
    segment = tl.program_id(0) % segments
    row_ptr = logits_ptr + _row_offset(row, batch, stride_s, stride_b)
    out_ptr = gradient_ptr + _row_offset(row, batch, out_stride_s, out_stride_b)
    tile_columns = _tile_columns(LANES, VECTOR, UNROLL)
    begin = segment * (TILES * TILE)
    end = tl.minimum(begin + TILES * TILE, width)
    tokens_end = tl.maximum(tl.minimum(end, columns), begin)
    target = tl.load(targets_ptr + row)
    scale = tl.load(grad_output_ptr + _row_offset(row, batch, grad_stride_s, grad_stride_b)).to(tl.float32)
    if (target == _IGNORED) | (scale == 0.0):
        # Masked rows are written without being read.
        tokens_end = begin
    whole_end = begin + (tokens_end - begin) // TILE * TILE
    row_max = tl.load(normalizer_ptr + row)
    factor = scale / tl.load(normalizer_ptr + rows + row)
    local = (target - first).to(tl.int32)
    for start in range(begin, whole_end, TILE):
        at = start + tile_columns
        values = tl.load(row_ptr + at, eviction_policy="evict_first").to(tl.float32)
        result = tl.exp2((values - row_max) * LOG2_E) * factor
        result = tl.where(at == local, result - scale, result)
        tl.store(out_ptr + at, result.to(gradient_ptr.dtype.element_ty))
    for start in range(whole_end, end, TILE):
        at = start + tile_columns
        tokens = at < tokens_end
        values = tl.load(row_ptr + at, mask=tokens, other=MINUS_INFINITY).to(tl.float32)
        result = tl.exp2((values - row_max) * LOG2_E) * factor
        result = tl.where(at == local, result - scale, result)
        # Not left to exp2(-inf) = 0: the row's maximum may itself be infinite.
        result = tl.where(tokens, result, 0.0)
        tl.store(out_ptr + at, result.to(gradient_ptr.dtype.element_ty), mask=at < end)


def row_statistics(logits_SBV: Tensor, targets_N: Tensor, first: int, columns: int) -> Tensor:
    """As in :mod:`logprob_torch`, with one part for each segment of a row: [K, 3, N] fp32."""
    sequence, batch, width = logits_SBV.shape
    rows, chosen = sequence * batch, statistics_configuration
    segments = chosen.segments(width, logits_SBV.dtype)
    statistics_K3N = torch.empty(segments, 3, rows, dtype=torch.float32, device=logits_SBV.device)
    if rows:
        row_statistics_kernel[(rows * segments,)](
            logits_SBV,
            targets_N,
            statistics_K3N,
            rows,
            batch,
            logits_SBV.stride(0),
            logits_SBV.stride(1),
            segments,
            first,
            columns,
            **chosen.constants(logits_SBV.dtype),
            num_warps=chosen.num_warps,
        )
    return statistics_K3N


def merge(statistics_K3N: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """As in :mod:`logprob_torch`: NLL [N] and normalizer [2, N] of whole rows, fp32."""
    parts, _, rows = statistics_K3N.shape
    nll_N, normalizer_2N = statistics_K3N.new_empty(rows), statistics_K3N.new_empty(2, rows)
    if rows:
        merge_kernel[(triton.cdiv(rows, MERGE_BLOCK),)](
            statistics_K3N, targets_N, nll_N, normalizer_2N, rows, parts, BLOCK=MERGE_BLOCK, num_warps=4
        )
    return nll_N, normalizer_2N


def gradient(
    logits_SBV: Tensor,
    targets_N: Tensor,
    normalizer_2N: Tensor,
    grad_output_SB: Tensor,
    first: int,
    columns: int,
    out_SBV: Tensor,
) -> None:
    """As in :mod:`logprob_torch`: write the gradient of the logits into ``out_SBV``, which may be the logits."""
    sequence, batch, width = logits_SBV.shape
    rows, chosen = sequence * batch, gradient_configuration
    segments = chosen.segments(width, logits_SBV.dtype)
    if rows:
        gradient_kernel[(rows * segments,)](
            logits_SBV,
            out_SBV,
            targets_N,
            normalizer_2N,
            grad_output_SB,
            rows,
            batch,
            logits_SBV.stride(0),
            logits_SBV.stride(1),
            out_SBV.stride(0),
            out_SBV.stride(1),
            grad_output_SB.stride(0),
            grad_output_SB.stride(1),
            segments,
            first,
            columns,
            width,
            **chosen.constants(logits_SBV.dtype),
            num_warps=chosen.num_warps,
        )
