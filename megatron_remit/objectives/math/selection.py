"""Which tokens are trained on, by a score of each token, as pure functions.

RHO-1 (Lin et al. 2024, "Not All Tokens Are What You Need for Pretraining") selects the share of tokens with the highest
score; ties go to the token that comes first in the data. ESLM (Bal et al. 2025, arXiv 2505.19893) selects the tokens at
or above a quantile, the value at risk. Either way the choice depends on the values alone, and the other tokens get no
gradient.

Shape suffixes: B microbatch, S sequence positions on this rank, W positions of the whole sequence, M microbatches of a
step, G groups of tokens that are ranked together, N tokens of a group.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_remit.parallel import own_part, whole_batch, whole_sequence

Scope = Literal["sequence", "microbatch", "global-batch"]
Choice = Callable[[Tensor, Tensor], Tensor]
"""From scores and masks [G, N] to the tokens that are selected in each row, bool [G, N]."""


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


@torch.no_grad()
def select_at_risk(score_GN: Tensor, mask_GN: Tensor, alpha: float) -> Tensor:
    """True for each row's unmasked tokens whose score is at least the row's value at risk, [G, N].

    The value at risk is the ``alpha``-quantile: the smallest score such that at least the share ``alpha`` of the row's
    unmasked tokens lies at or below it. About ``1 - alpha`` of the tokens are selected, and all that equal the
    quantile. ``alpha`` 0 selects all.

    Args:
        score_GN: a token's risk, such as its NLL in nats.
        mask_GN: 1 for tokens that count, 0 for the others, which are never selected.
        alpha: in [0, 1).

    Raises:
        ValueError: shapes differ, or alpha lies outside [0, 1).
    """
    if score_GN.shape != mask_GN.shape:
        raise ValueError(f"score {tuple(score_GN.shape)} and mask {tuple(mask_GN.shape)} must have one shape")
    if not 0.0 <= alpha < 1.0:
        raise ValueError(f"alpha is {alpha}, expected a number in [0, 1)")
    counts_GN = mask_GN > 0
    tokens_G = counts_GN.sum(dim=1)
    # The quantile's place in ascending order, from 1; masked tokens stand behind all others.
    place_G = (tokens_G.double() * alpha).ceil().long().clamp(min=1)
    ascending_GN = score_GN.masked_fill(~counts_GN, float("inf")).sort(dim=1).values
    value_at_risk_G1 = ascending_GN.gather(1, (place_G - 1).unsqueeze(1))
    return (score_GN >= value_at_risk_G1) & counts_GN


def select_in_microbatch(
    excess_BS: Tensor, mask_BS: Tensor, ratio: float, scope: Scope, cp_group: ProcessGroup | None = None
) -> Tensor:
    """True for the tokens that :func:`select_highest` selects, [B, S]: :func:`choose_in_microbatch`."""
    return choose_in_microbatch(partial(select_highest, ratio=ratio), excess_BS, mask_BS, scope, cp_group)


def choose_in_microbatch(
    choice: Choice, score_BS: Tensor, mask_BS: Tensor, scope: Scope, cp_group: ProcessGroup | None = None
) -> Tensor:
    """True for the selected tokens, [B, S], chosen in each ``sequence`` or over the ``microbatch``.

    A microbatch is ``--micro-batch-size`` successive sequences of the data, whichever data-parallel rank has it and
    whatever the reference's microbatch is. ``cp_group`` holds the other parts of the same sequences, if they are split.

    Raises:
        ValueError: the scope is not one of these two, or what ``choice`` raises.
    """
    if scope not in ("sequence", "microbatch"):
        raise ValueError(f"scope is {scope!r}, expected 'sequence' or 'microbatch'")
    score_BW, mask_BW = whole_sequence(score_BS, cp_group), whole_sequence(mask_BS, cp_group)
    shape = score_BW.shape
    if scope == "microbatch":
        score_BW, mask_BW = score_BW.reshape(1, -1), mask_BW.reshape(1, -1)
    return own_part(choice(score_BW, mask_BW).view(shape), cp_group)


def choose_in_global_batch(
    choice: Choice,
    score_MBS: Tensor,
    mask_MBS: Tensor,
    dp_group: ProcessGroup | None = None,
    cp_group: ProcessGroup | None = None,
) -> Tensor:
    """True for the selected tokens, [M, B, S], chosen over all microbatches of the step on all data-parallel ranks.

    Every rank of ``dp_group`` gathers the score and the mask of the whole batch, 4 bytes each per token, and sorts it.
    Raises ValueError as ``choice`` does.
    """
    score_MDBW = whole_batch(whole_sequence(score_MBS, cp_group), dp_group)
    mask_MDBW = whole_batch(whole_sequence(mask_MBS, cp_group), dp_group)
    selected_GN = choice(score_MDBW.reshape(1, -1), mask_MDBW.reshape(1, -1))
    rank = dp_group.rank() if dp_group is not None else 0
    return own_part(selected_GN.view(score_MDBW.shape)[:, rank], cp_group)
