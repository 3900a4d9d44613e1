"""The ReMiT weight (paper, equations 3-5), as pure functions of per-token negative log-likelihoods.

Centering may be by sequence or by document, also where context parallelism splits them. The control "permuted weights"
puts the same weights on other tokens of the same sequence.

Shape suffixes: B microbatch, S sequence positions on this rank (the sequence length over the context-parallel size), W
positions of the whole sequence, D bins for documents (as many as positions of the whole sequence).
All values are in nats unless a name says otherwise.
"""

from dataclasses import dataclass
from typing import Literal

import numpy
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_remit.parallel import own_part, whole_sequence

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


def document_ids(labels_BS: Tensor, end_of_document: int) -> Tensor:
    """Which document of its sequence each label belongs to: 0, 1, .. from the left, int64 of the labels' shape.

    ``labels_BS`` are whole sequences. A document's end token is its last own token. What stands before the first end
    token is document 0, the tail of a document that began in an earlier sequence included.
    """
    ends_BS = (labels_BS == end_of_document).long()
    return ends_BS.cumsum(dim=1) - ends_BS


def document_mean(
    value_BS: Tensor, mask_BS: Tensor, document_ids_BS: Tensor, cp_group: ProcessGroup | None = None
) -> Tensor:
    """Mean over the unmasked tokens of each position's own document, shape and dtype of ``value_BS``.

    Args:
        value_BS: values of this rank's part of the sequences.
        mask_BS: 1 for tokens that count, 0 for the others.
        document_ids_BS: from :func:`document_ids`, this rank's part.
        cp_group: the ranks that hold the other parts of the same sequences, if the sequence is split.

    A document without any unmasked token has mean 0. Sums are taken in float64, so that their order, which a GPU does
    not fix, leaves no trace in a float32 result.
    """
    ranks = 1 if cp_group is None else cp_group.size()
    batch, length = value_BS.shape
    total_2BD = torch.zeros(2, batch, length * ranks, dtype=torch.float64, device=value_BS.device)
    total_2BD[0].scatter_add_(1, document_ids_BS, (value_BS * mask_BS).double())
    total_2BD[1].scatter_add_(1, document_ids_BS, mask_BS.double())
    if ranks > 1:
        torch.distributed.all_reduce(total_2BD, group=cp_group)
    mean_BD = total_2BD[0] / total_2BD[1].clamp(min=1)
    return mean_BD.gather(1, document_ids_BS).to(value_BS.dtype)


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
        policy_nll_BS: L_theta of the ground-truth tokens, nats (for ``contrast`` that of the reference's base).
        reference_nll_BS: L_RL of the same tokens, nats.
        mask_BS: loss mask, 1 for tokens that count.
        epsilon: clip width in [0, 1]; None turns clipping off (the paper's "no clip").
        centering: ``sequence`` subtracts each sequence's mean delta (equation 4), ``document`` that of the token's own
            document inside the sequence, ``none`` leaves delta as it is.
        cp_group: context-parallel group when the sequence is split over ranks.
        document_ids_BS: which document each token belongs to (:func:`document_ids`); for ``document`` only.

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


@torch.no_grad()
def permute_weights(
    weight_BS: Tensor, mask_BS: Tensor, sample_B: Tensor, seed: int, cp_group: ProcessGroup | None = None
) -> Tensor:
    """The weights of each sequence's unmasked tokens in a random order; masked tokens keep theirs. [B, S].

    If ReMiT gains by which tokens it favours, this run must lose the gain: its weights have the same histogram,
    sequence by sequence, but no relation to the tokens that they stand on.

    Args:
        weight_BS: one weight per token.
        mask_BS: 1 for tokens that count, 0 for the others.
        sample_B: each sequence's number in the run (samples consumed before it). With ``seed`` it alone decides the
            order, so all parallel layouts and a resumed run agree.
        seed: the run's seed, not negative.
        cp_group: the ranks that hold the other parts of the same sequences, if they are split.
    """
    weight_BW, counts_BW = whole_sequence(weight_BS, cp_group), whole_sequence(mask_BS, cp_group) > 0
    # numpy's generator takes both numbers whole; torch's CPU generator uses 32 bits of a seed.
    draws = [numpy.random.default_rng([seed, sample]).random(weight_BW.size(1)) for sample in sample_B.tolist()]
    key_BW = torch.from_numpy(numpy.stack(draws)).to(weight_BW.device)
    # Where the k-th unmasked token stands, and where the token with the k-th smallest key does.
    place_BW = (~counts_BW).to(torch.uint8).sort(dim=1, stable=True).indices
    source_BW = key_BW.masked_fill(~counts_BW, float("inf")).sort(dim=1, stable=True).indices
    permuted_BW = weight_BW.scatter(1, place_BW, weight_BW.gather(1, source_BW))
    return own_part(permuted_BW, cp_group)
