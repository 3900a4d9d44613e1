"""KL divergence of the policy from a reference over the whole vocabulary, which tensor-parallel ranks share.

The policy comes as logits, the reference as final hidden states and its output layer's weight: its logits are made for
a chunk of tokens at a time. No fp32 copy of either model's logits is longer than a chunk, and with Triton there is
none. The forward pass makes the gradient too, chunk by chunk, in the dtype of the logits: the backward pass needs
neither model's logits again, so their memory is free for other uses.

Shape suffixes: S sequence, B microbatch, N = S * B tokens, C tokens of a chunk, V vocabulary rows of this rank, v those
of them that are tokens (the others are padding), H the reference's hidden size.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from megatron_remit.kernels.vocab_parallel_logprob import Shard

# Elements of one array of a chunk. In torch about five such arrays exist at a time, in fp32: 160 MiB. With Triton it is
# one, of the reference's logits: 128 MiB in bf16.
CHUNK_ELEMENTS = {"torch": 1 << 23, "triton": 1 << 26}
# Each chunk reads the reference's output layer once, so a chunk has at least this many tokens, whatever it takes.
MIN_CHUNK_TOKENS = 512
ROW_MULTIPLE = 128
"""Rows of a matrix product's tile on a GPU."""


def vocab_parallel_kl(
    logits_SBV: Tensor,
    reference_hidden_SBH: Tensor,
    reference_weight_VH: Tensor,
    vocabulary_size: int,
    temperature: float = 1.0,
    group: ProcessGroup | None = None,
    scale_reference: Callable[[Tensor], Tensor] = lambda logits: logits,
    chunk_tokens: int | None = None,
    implementation: str = "torch",
) -> Tensor:
    """``sum_x p_ref(x) * (log p_ref(x) - log p_theta(x))`` of each token, [S, B] in nats, both at ``temperature``.

    It is equation 12 of the paper minus the reference's entropy, which does not depend on the policy, so the gradient
    is the same. The gradient goes to ``logits_SBV`` only. The result is fp32, or float64 for float64 logits.

    Args:
        logits_SBV: the policy's logits, this rank's rows of the vocabulary.
        reference_hidden_SBH: the reference's final hidden states of the same tokens, the whole sequence.
        reference_weight_VH: the reference's output layer, the same rows of the vocabulary.
        vocabulary_size: number of tokens; rows beyond it are padding and take no probability.
        temperature: divides both models' logits, above 0.
        group: tensor-parallel group; None when the vocabulary is whole.
        scale_reference: applied to the reference's logits (Megatron's MuP scaling).
        chunk_tokens: tokens of a chunk; by default what :func:`tokens_of_a_chunk` says.
        implementation: "torch", or "triton" for 16-bit and fp32 logits.

    Raises:
        ValueError: shapes differ, or the temperature is not above 0.
    """
    rows = logits_SBV.size(-1)
    if reference_hidden_SBH.shape[:2] != logits_SBV.shape[:2] or reference_weight_VH.size(0) != rows:
        raise ValueError(
            f"policy logits {tuple(logits_SBV.shape)}, reference hidden states {tuple(reference_hidden_SBH.shape)} and "
            f"reference head {tuple(reference_weight_VH.shape)} must agree in tokens and in vocabulary rows"
        )
    if not temperature > 0.0:
        raise ValueError(f"temperature is {temperature}, expected a number above 0")
    chunk_tokens = chunk_tokens or tokens_of_a_chunk(rows, implementation)

    def reference_logits(chunk: slice) -> Tensor:
        hidden_CH = reference_hidden_SBH.reshape(-1, reference_hidden_SBH.size(-1))[chunk]
        return scale_reference(torch.nn.functional.linear(hidden_CH, reference_weight_VH))

    chunk = _fused_chunk if implementation == "triton" else _plain_chunk
    return _VocabParallelKl.apply(
        logits_SBV, reference_logits, vocabulary_size, temperature, group, chunk_tokens, chunk
    )


def tokens_of_a_chunk(rows: int, implementation: str) -> int:
    """Tokens of a chunk for ``rows`` vocabulary rows of this rank: a multiple of 128, at least 512."""
    return max(CHUNK_ELEMENTS[implementation] // rows // ROW_MULTIPLE * ROW_MULTIPLE, MIN_CHUNK_TOKENS)


class _VocabParallelKl(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_SBV: Tensor,
        reference_logits: Callable[[slice], Tensor],
        vocabulary_size: int,
        temperature: float,
        group: ProcessGroup | None,
        chunk_tokens: int,
        compute: Callable[..., Tensor],
    ) -> Tensor:
        logits_NV = logits_SBV.reshape(-1, logits_SBV.size(-1))
        tokens, rows = logits_NV.shape
        columns = Shard.of(rows, vocabulary_size, group).columns
        dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
        kl_N = torch.empty(tokens, dtype=dtype, device=logits_NV.device)
        gradient_NV = torch.empty_like(logits_NV) if ctx.needs_input_grad[0] else None
        for start in range(0, tokens, chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            gradient_CV = None if gradient_NV is None else gradient_NV[chunk]
            kl_N[chunk] = compute(
                logits_NV[chunk], reference_logits(chunk), columns, temperature, group, gradient_CV, dtype
            )
        if gradient_NV is not None:
            ctx.save_for_backward(gradient_NV.view(logits_SBV.shape))
        return kl_N.view(logits_SBV.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output_SB: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_SBV,) = ctx.saved_tensors
        # In place, or there would be a second buffer of this size. A second backward pass is an error of autograd's.
        gradient_SBV.mul_(grad_output_SB.unsqueeze(-1).to(gradient_SBV.dtype))
        return gradient_SBV, None, None, None, None, None, None


def _fused_chunk(
    policy_CV: Tensor,
    reference_CV: Tensor,
    columns: int,
    temperature: float,
    group: ProcessGroup | None,
    gradient_CV: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """KL of each token; ``gradient_CV`` gets its derivative in the policy's logits."""
    kernels = importlib.import_module("megatron_remit.kernels.kl_triton")
    pairs = [kernels.statistics(logits_CV, columns, temperature) for logits_CV in (policy_CV, reference_CV)]
    local_2C = torch.stack([maximum_C for maximum_C, _ in pairs])
    highest_2C = local_2C.clone()
    _all_reduce(highest_2C, torch.distributed.ReduceOp.MAX, group)
    sums_2C = torch.stack([sum_C for _, sum_C in pairs]) * (local_2C - highest_2C).exp()
    _all_reduce(sums_2C, torch.distributed.ReduceOp.SUM, group)
    normalizer_4C = torch.stack([highest_2C[0], sums_2C[0], highest_2C[1], sums_2C[1]])
    kl_C = kernels.divergence(policy_CV, reference_CV, columns, temperature, normalizer_4C, gradient_CV)
    _all_reduce(kl_C, torch.distributed.ReduceOp.SUM, group)
    return kl_C + sums_2C[0].log() - sums_2C[1].log()


def _plain_chunk(
    policy_CV: Tensor,
    reference_CV: Tensor,
    columns: int,
    temperature: float,
    group: ProcessGroup | None,
    gradient_CV: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The same in plain torch, in ``dtype``."""
    policy_Cv = policy_CV[:, :columns].to(dtype) / temperature
    reference_Cv = reference_CV[:, :columns].to(dtype) / temperature
    kl_C, slope_Cv = _chunk(policy_Cv, reference_Cv, group)
    if gradient_CV is not None:
        gradient_CV[:, :columns] = slope_Cv / temperature
        gradient_CV[:, columns:] = 0.0
    return kl_C


def _chunk(policy_Cv: Tensor, reference_Cv: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """KL of each token and its derivative in the policy's logits, p_theta - p_ref. The arguments are overwritten."""
    highest_2C = torch.stack([_row_max(policy_Cv), _row_max(reference_Cv)])
    _all_reduce(highest_2C, torch.distributed.ReduceOp.MAX, group)
    policy_Cv -= highest_2C[0].unsqueeze(1)
    reference_Cv -= highest_2C[1].unsqueeze(1)
    weight_Cv = reference_Cv.exp()
    gap_C = (weight_Cv * (reference_Cv - policy_Cv)).sum(dim=1)
    policy_Cv.exp_()
    sums_3C = torch.stack([policy_Cv.sum(dim=1), weight_Cv.sum(dim=1), gap_C])
    _all_reduce(sums_3C, torch.distributed.ReduceOp.SUM, group)
    policy_sum_C, weight_sum_C, gap_C = sums_3C
    kl_C = gap_C / weight_sum_C + policy_sum_C.log() - weight_sum_C.log()
    slope_Cv = policy_Cv.div_(policy_sum_C.unsqueeze(1)).sub_(weight_Cv.div_(weight_sum_C.unsqueeze(1)))
    return kl_C, slope_Cv


def _row_max(values_Cv: Tensor) -> Tensor:
    """-inf where this rank holds padding only."""
    if values_Cv.size(1) == 0:
        return values_Cv.new_full(values_Cv.shape[:1], float("-inf"))
    return values_Cv.amax(dim=1)


def _all_reduce(value: Tensor, operation: torch.distributed.ReduceOp.RedOpType, group: ProcessGroup | None) -> None:
    if group is not None and torch.distributed.get_world_size(group) > 1:
        torch.distributed.all_reduce(value, operation, group=group)
