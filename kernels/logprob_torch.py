"""Vocabulary-parallel NLL in plain torch: the truth that the Triton kernels are tested against, and the CPU's path.

The arithmetic and its order are those of Megatron's ``vocab_parallel_cross_entropy``: one rank gives Megatron's bits.
Logits of 16 or 32 bits are computed in fp32, float64 logits in float64.

Shape suffixes: S sequence, B microbatch, V vocabulary columns of this rank, N = S * B rows, K parts of a row.
"""

import torch
from torch import Tensor

IGNORED = -100  # the target of a row that counts neither in the loss nor in the gradient, as in F.cross_entropy


def row_statistics(logits_SBV: Tensor, targets_N: Tensor, first: int, columns: int) -> Tensor:
    """What this rank knows of each row, [1, 3, N]: maximum, sum of ``exp(logit - maximum)``, logit of the target.

    Args:
        logits_SBV: this rank's logits; they stay as they are.
        targets_N: int64 ids in the whole vocabulary.
        first: vocabulary id of column 0.
        columns: how many columns are tokens; the rest is padding and counts nothing.

    A rank without tokens gives (-inf, 0), a rank that does not hold the target -inf as its logit.
    """
    values_SBV = _compute(logits_SBV)
    kept_SBV = values_SBV[..., :columns]
    row_max_SB = kept_SBV.max(-1)[0] if columns else values_SBV.new_full(values_SBV.shape[:-1], float("-inf"))
    local_SB1, here_SB1 = _local(targets_N.view(*logits_SBV.shape[:-1], 1), first, columns)
    target_SB1 = values_SBV.gather(-1, local_SB1).masked_fill(~here_SB1, float("-inf"))
    sum_SB = _exponentials(values_SBV, row_max_SB, columns).sum(-1)
    return torch.stack([row_max_SB.flatten(), sum_SB.flatten(), target_SB1.flatten()])[None]


def merge(statistics_K3N: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """NLL [N] in nats and normalizer [2, N] (maximum, sum of exponentials) of whole rows, from their parts."""
    if statistics_K3N.size(0) == 1:
        row_max_N, sum_N, target_N = statistics_K3N[0]
    else:
        max_KN, sum_KN, target_KN = statistics_K3N.unbind(1)
        row_max_N, target_N = max_KN.amax(0), target_KN.amax(0)
        sum_N = (sum_KN * torch.exp(max_KN - _finite(row_max_N))).sum(0)
    nll_N = torch.log(sum_N) - (target_N - row_max_N)
    return nll_N.masked_fill(targets_N == IGNORED, 0.0), torch.stack([row_max_N, sum_N])


def gradient(
    logits_SBV: Tensor,
    targets_N: Tensor,
    normalizer_2N: Tensor,
    grad_output_SB: Tensor,
    first: int,
    columns: int,
    out_SBV: Tensor,
) -> None:
    """Write ``(softmax - one_hot) * grad_output`` into ``out_SBV``, which may be the logits themselves.

    The one-hot is subtracted before anything is rounded to the dtype of the logits.
    """
    shape = logits_SBV.shape[:-1]
    gradient_SBV = _exponentials(_compute(logits_SBV), normalizer_2N[0].view(shape), columns)
    gradient_SBV.div_(normalizer_2N[1].view(*shape, 1))
    local_SB1, here_SB1 = _local(targets_N.view(*shape, 1), first, columns)
    gradient_SBV.scatter_add_(-1, local_SB1, -here_SB1.to(gradient_SBV.dtype))
    gradient_SBV.mul_(grad_output_SB[..., None])
    gradient_SBV[(targets_N == IGNORED).view(shape)] = 0.0
    out_SBV.copy_(gradient_SBV)


def _compute(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _exponentials(values_SBV: Tensor, row_max_SB: Tensor, columns: int) -> Tensor:
    """``exp(value - maximum)`` in a tensor of its own, 0 in the padding columns."""
    shifted_SBV = values_SBV - _finite(row_max_SB)[..., None]
    # Masked and not cut off: a sum over another number of columns is added up in another order.
    shifted_SBV[..., columns:] = float("-inf")
    return shifted_SBV.exp_()


def _finite(row_max: Tensor) -> Tensor:
    """0 where nothing is above -inf, so that -inf - maximum stays -inf and is not NaN."""
    return row_max.masked_fill(row_max == float("-inf"), 0.0)


def _local(targets: Tensor, first: int, columns: int) -> tuple[Tensor, Tensor]:
    """Column of each target on this rank (0 if another rank holds it), and whether this rank holds it."""
    local = targets - first
    here = (local >= 0) & (local < columns)
    return local.masked_fill(~here, 0), here
