"""RHO-1's choice of tokens (Lin et al. 2024, "Not All Tokens Are What You Need for Pretraining"), as pure functions.

The share of tokens with the highest excess loss ``nll_theta - nll_ref`` is selected; the others get no gradient. Ties
go to the token that comes first in the data, so the choice depends on the values alone.

Shape suffixes: B microbatch, S sequence positions on this rank, W positions of the whole sequence, M microbatches of a
step, G groups of tokens that are ranked together, N tokens of a group.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_remit.parallel import own_part, whole_batch, whole_sequence

Scope = Literal["sequence", "microbatch", "global-batch"]


@torch.no_grad()
def select_highest(excess_GN: Tensor, mask_GN: Tensor, ratio: float) -> Tensor:
    """True for the ``ratio`` of each row's unmasked tokens with the highest excess, [G, N].

    Args:
        excess_GN: excess loss, nats.
        mask_GN: 1 for tokens that count, 0 for the others, which are never selected.
        ratio: share in (0, 1]. ``round(ratio * tokens)`` tokens (half to even) are selected, at least 1 of a row that
            has any; 1.0 selects all.

    Raises:
        ValueError: shapes differ, or ratio lies outside (0, 1].
    """
    if excess_GN.shape != mask_GN.shape:
        raise ValueError(f"excess {tuple(excess_GN.shape)} and mask {tuple(mask_GN.shape)} must have one shape")
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"ratio is {ratio}, expected a number in (0, 1]")
    counts_GN = mask_GN > 0
    tokens_G = counts_GN.sum(dim=1)
    selected_G = (tokens_G.double() * ratio).round().long().clamp(min=1).minimum(tokens_G)
    # Stable: of equal values the earlier stays ahead. Masked tokens go to the end of the order.
    order_GN = excess_GN.masked_fill(~counts_GN, float("-inf")).sort(dim=1, descending=True, stable=True).indices
    ahead_GN = torch.arange(excess_GN.size(1), device=excess_GN.device) < selected_G.unsqueeze(1)
    return torch.zeros_like(counts_GN).scatter_(1, order_GN, ahead_GN) & counts_GN


def select_in_microbatch(
    excess_BS: Tensor, mask_BS: Tensor, ratio: float, scope: Scope, cp_group: ProcessGroup | None = None
) -> Tensor:
    """True for the selected tokens, [B, S], ranked in each ``sequence`` or over the ``microbatch``.

    A microbatch is ``--micro-batch-size`` successive sequences of the data, whichever data-parallel rank has it and
    whatever the reference's microbatch is. ``cp_group`` holds the other parts of the same sequences, if they are split.

    Raises:
        ValueError: the scope is not one of these two, or see :func:`select_highest`.
    """
    if scope not in ("sequence", "microbatch"):
        raise ValueError(f"scope is {scope!r}, expected 'sequence' or 'microbatch'")
    excess_BW, mask_BW = whole_sequence(excess_BS, cp_group), whole_sequence(mask_BS, cp_group)
    shape = excess_BW.shape
    if scope == "microbatch":
        excess_BW, mask_BW = excess_BW.reshape(1, -1), mask_BW.reshape(1, -1)
    return own_part(select_highest(excess_BW, mask_BW, ratio).view(shape), cp_group)


def select_in_global_batch(
    excess_MBS: Tensor,
    mask_MBS: Tensor,
    ratio: float,
    dp_group: ProcessGroup | None = None,
    cp_group: ProcessGroup | None = None,
) -> Tensor:
    """True for the selected tokens, [M, B, S], ranked over all microbatches of the step on all data-parallel ranks.

    Every rank of ``dp_group`` gathers the excess and the mask of the whole batch, 4 bytes each per token, and ranks it.
    Raises ValueError as :func:`select_highest` does.
    """
    excess_MDBW = whole_batch(whole_sequence(excess_MBS, cp_group), dp_group)
    mask_MDBW = whole_batch(whole_sequence(mask_MBS, cp_group), dp_group)
    selected_GN = select_highest(excess_MDBW.reshape(1, -1), mask_MDBW.reshape(1, -1), ratio)
    rank = dp_group.rank() if dp_group is not None else 0
    return own_part(selected_GN.view(excess_MDBW.shape)[:, rank], cp_group)
