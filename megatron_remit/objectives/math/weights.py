"""The ReMiT weight (paper, equations 3-5), as pure functions of per-token negative log-likelihoods.

Shape suffixes: B microbatch, S sequence positions on this rank (the sequence length over the context-parallel size).
All values are in nats unless a name says otherwise.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_remit.objectives.math.documents import document_mean

Centering = Literal["sequence", "document", "none"]


@dataclass(frozen=True)
class RemitWeights:
    """What equation 5 gives for a microbatch, with what led to it. No field carries a gradient."""

    weight_BS: Tensor
    """w_t, dimensionless; 0 is never produced by masking: masked tokens keep a weight that the loss mask removes."""
    delta_BS: Tensor
    """L_theta - L_RL before centering (equation 3), nats."""
    clipped_low_BS: Tensor
    """True where the unclipped weight lies below 1 - epsilon."""
    clipped_high_BS: Tensor
    """True where the unclipped weight lies above 1 + epsilon."""


def sequence_mean(value_BS: Tensor, mask_BS: Tensor, cp_group: ProcessGroup | None = None) -> Tensor:
    """Mean over the unmasked tokens of each whole sequence (equation 4), shape [B, 1].

    Args:
        value_BS: values of this rank's part of the sequences.
        mask_BS: 1 for tokens that count, 0 for the others.
        cp_group: the ranks that hold the other parts of the same sequences, if the sequence is split.

    A sequence without any unmasked token has mean 0.
    """
    total_2B = torch.stack([(value_BS * mask_BS).sum(dim=1), mask_BS.sum(dim=1)])
    if cp_group is not None and cp_group.size() > 1:
        torch.distributed.all_reduce(total_2B, group=cp_group)
    return (total_2B[0] / total_2B[1].clamp(min=1)).unsqueeze(1)


@torch.no_grad()
def remit_weights(
    policy_nll_BS: Tensor,
    reference_nll_BS: Tensor,
    mask_BS: Tensor,
    epsilon: float | None,
    centering: Centering = "sequence",
    cp_group: ProcessGroup | None = None,
    document_ids_BS: Tensor | None = None,
) -> RemitWeights:
    """Token weights ``clip(2 * sigmoid(delta - mean(delta)), 1 - epsilon, 1 + epsilon)`` (equations 3-5).

    Args:
        policy_nll_BS: L_theta of the ground-truth tokens, nats.
        reference_nll_BS: L_RL of the same tokens, nats.
        mask_BS: loss mask, 1 for tokens that count.
        epsilon: clip width in [0, 1]; None turns clipping off (the paper's "no clip").
        centering: ``sequence`` subtracts each sequence's mean delta (equation 4), ``document`` that of the token's own
            document inside the sequence, ``none`` leaves delta as it is.
        cp_group: context-parallel group when the sequence is split over ranks.
        document_ids_BS: which document each token belongs to (``documents.document_ids``); for ``document`` only.

    Raises:
        ValueError: shapes differ, epsilon lies outside [0, 1], centering is unknown, or it needs document ids.
    """
    if not policy_nll_BS.shape == reference_nll_BS.shape == mask_BS.shape:
        raise ValueError(
            f"policy NLL {tuple(policy_nll_BS.shape)}, reference NLL {tuple(reference_nll_BS.shape)} and loss mask "
            f"{tuple(mask_BS.shape)} must have one shape [microbatch, sequence]"
        )
    if epsilon is not None and not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"epsilon is {epsilon}, expected a number in [0, 1] or None")
    delta_BS = policy_nll_BS - reference_nll_BS
    if centering == "sequence":
        centered_BS = delta_BS - sequence_mean(delta_BS, mask_BS, cp_group)
    elif centering == "document":
        if document_ids_BS is None:
            raise ValueError("centering is 'document', but document_ids_BS is not given")
        centered_BS = delta_BS - document_mean(delta_BS, mask_BS, document_ids_BS, cp_group)
    elif centering == "none":
        centered_BS = delta_BS
    else:
        raise ValueError(f"centering is {centering!r}, expected 'sequence', 'document' or 'none'")
    raw_BS = 2.0 * torch.sigmoid(centered_BS)
    if epsilon is None:
        untouched_BS = torch.zeros_like(raw_BS, dtype=torch.bool)
        return RemitWeights(raw_BS, delta_BS, untouched_BS, untouched_BS)
    low, high = 1.0 - epsilon, 1.0 + epsilon
    return RemitWeights(raw_BS.clamp(low, high), delta_BS, raw_BS < low, raw_BS > high)
