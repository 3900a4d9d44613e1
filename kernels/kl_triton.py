"""KL divergence of a chunk of tokens in Triton, for :mod:`megatron_remit.kernels.vocab_parallel_kl`.

Logits are read as they are, in 16 bits: once for their statistics, once for divergence and gradient. How a program cuts
a row is told in :mod:`megatron_remit.kernels.logprob_triton`, whose tiles these are. There are no atomics: the same
input gives the same bits.

Shape suffixes: C tokens of the chunk, V vocabulary rows of this rank, K segments of a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_remit.kernels.logprob_triton import LOG2_E, MINUS_INFINITY, Configuration, _fold, _tile_columns

statistics_configuration = Configuration(num_warps=8, unroll=4, tiles=4)
divergence_configuration = Configuration(num_warps=8, unroll=2, tiles=8)


@triton.jit
def kl_statistics_kernel(
    logits_ptr,  # [C, V] with strides (stride, 1)
    statistics_ptr,  # [K, 2, C] fp32
    rows, stride, segments, columns, factor,
    LANES: tl.constexpr, VECTOR: tl.constexpr, UNROLL: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Maximum of ``logits * factor``, and the sum of exponentials below it, of one segment of one row."""
    TILE: tl.constexpr = LANES * VECTOR * UNROLL
    row = tl.program_id(0) // segments
    segment = tl.program_id(0) % segments
    row_ptr = logits_ptr + row.to(tl.int64) * stride
    tile_columns = _tile_columns(LANES, VECTOR, UNROLL)
    begin = segment * (TILES * TILE)
    end = tl.maximum(tl.minimum(begin + TILES * TILE, columns), begin)
    whole_end = begin + (end - begin) // TILE * TILE
    running_max = tl.full([LANES], MINUS_INFINITY, tl.float32)
    running_sum = tl.zeros([LANES], tl.float32)
    for start in range(begin, whole_end, TILE):
        tile = tl.load(row_ptr + start + tile_columns).to(tl.float32) * factor
        running_max, running_sum = _fold(tile, running_max, running_sum)
    if whole_end < end:
        at = whole_end + tile_columns
        tile = tl.load(row_ptr + at, mask=at < end, other=MINUS_INFINITY).to(tl.float32) * factor
        running_max, running_sum = _fold(tile, running_max, running_sum)
    segment_max = tl.max(running_max, axis=0)
    shift = tl.where(segment_max == MINUS_INFINITY, 0.0, segment_max)
    out_ptr = statistics_ptr + segment.to(tl.int64) * 2 * rows + row
    tl.store(out_ptr, segment_max)
    tl.store(out_ptr + rows, tl.sum(running_sum * tl.exp2((running_max - shift) * LOG2_E), axis=0))


@triton.jit
def kl_gradient_kernel(
    logits_ptr,  # [C, V] with strides (stride, 1), the policy's
    reference_ptr,  # [C, V] with strides (reference_stride, 1)
    gradient_ptr,  # [C, V] with strides (out_stride, 1)
    normalizer_ptr,  # [4, C] fp32: the policy's maximum and sum of exponentials, the reference's
    gap_ptr,  # [K, C] fp32
    rows, stride, reference_stride, out_stride, segments, columns, width, factor,
    LANES: tl.constexpr, VECTOR: tl.constexpr, UNROLL: tl.constexpr, TILES: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """One segment of one row: the sum of ``p_ref * (shifted reference - shifted policy)``, and the gradient
    ``(p_theta - p_ref) * factor``, 0 in the padding, columns to width."""
    TILE: tl.constexpr = LANES * VECTOR * UNROLL
    row = tl.program_id(0) // segments
    segment = tl.program_id(0) % segments
    policy_row = logits_ptr + row.to(tl.int64) * stride
    reference_row = reference_ptr + row.to(tl.int64) * reference_stride
    out_row = gradient_ptr + row.to(tl.int64) * out_stride
    tile_columns = _tile_columns(LANES, VECTOR, UNROLL)
    begin = segment * (TILES * TILE)
    end = tl.minimum(begin + TILES * TILE, width)
    policy_max = tl.load(normalizer_ptr + row)
    policy_scale = 1.0 / tl.load(normalizer_ptr + rows + row)
    reference_max = tl.load(normalizer_ptr + 2 * rows + row)
    reference_scale = 1.0 / tl.load(normalizer_ptr + 3 * rows + row)
    running_gap = tl.zeros([LANES], tl.float32)
    for start in range(begin, end, TILE):
        at = start + tile_columns
        tokens = at < columns
        policy = tl.load(policy_row + at, mask=tokens, other=0.0).to(tl.float32) * factor - policy_max
        reference = tl.load(reference_row + at, mask=tokens, other=0.0).to(tl.float32) * factor - reference_max
        weight = tl.exp2(reference * LOG2_E) * reference_scale
        gap = tl.where(tokens, weight * (reference - policy), 0.0)
        running_gap += tl.sum(tl.sum(gap, axis=2), axis=0)
        if GRADIENT:
            slope = tl.where(tokens, (tl.exp2(policy * LOG2_E) * policy_scale - weight) * factor, 0.0)
            tl.store(out_row + at, slope.to(gradient_ptr.dtype.element_ty), mask=at < end)
    tl.store(gap_ptr + segment.to(tl.int64) * rows + row, tl.sum(running_gap, axis=0))


def statistics(logits_CV: Tensor, columns: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Maximum of ``logits / temperature`` over this rank's columns, and the sum of exponentials below it: [C] fp32."""
    rows, width = logits_CV.shape
    chosen = statistics_configuration
    segments = chosen.segments(width, logits_CV.dtype)
    parts_K2C = torch.empty(segments, 2, rows, dtype=torch.float32, device=logits_CV.device)
    kl_statistics_kernel[(rows * segments,)](
        logits_CV,
        parts_K2C,
        rows,
        logits_CV.stride(0),
        segments,
        columns,
        1.0 / temperature,
        **chosen.constants(logits_CV.dtype),
        num_warps=chosen.num_warps,
    )
    maxima_KC, sums_KC = parts_K2C.unbind(1)
    highest_C = maxima_KC.amax(dim=0)
    shift_C = highest_C.masked_fill(highest_C == float("-inf"), 0.0)
    return highest_C, (sums_KC * (maxima_KC - shift_C).exp()).sum(dim=0)


def divergence(
    policy_CV: Tensor,
    reference_CV: Tensor,
    columns: int,
    temperature: float,
    normalizer_4C: Tensor,
    gradient_CV: Tensor | None,
) -> Tensor:
    """This rank's part of ``sum_x p_ref(x) * (reference(x) - policy(x))``, both below their maxima, [C] fp32; the
    derivative of the divergence in the policy's logits is written to ``gradient_CV``.

    Args:
        policy_CV, reference_CV: logits, their columns contiguous.
        columns: how many of them are tokens.
        normalizer_4C: of whole rows, fp32: the policy's maximum and sum of exponentials, then the reference's.
    """
    rows, width = policy_CV.shape
    chosen = divergence_configuration
    segments = chosen.segments(width, policy_CV.dtype)
    gap_KC = torch.empty(segments, rows, dtype=torch.float32, device=policy_CV.device)
    out_CV = policy_CV if gradient_CV is None else gradient_CV
    kl_gradient_kernel[(rows * segments,)](
        policy_CV,
        reference_CV,
        out_CV,
        normalizer_4C,
        gap_KC,
        rows,
        policy_CV.stride(0),
        reference_CV.stride(0),
        out_CV.stride(0),
        segments,
        columns,
        width,
        1.0 / temperature,
        **chosen.constants(policy_CV.dtype),
        GRADIENT=gradient_CV is not None,
        num_warps=chosen.num_warps,
    )
    return gap_KC.sum(dim=0)
