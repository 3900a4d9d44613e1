"""The reference's confidence as a weight: PriFT (Wang et al. 2026, arXiv 2606.09396), as pure functions.

A token weighs the probability that the reference gives it, ``exp(-nll_ref)``, divided by the mean of these
probabilities over the unmasked tokens of the global batch. The mean weight is then 1, and the policy takes no part.

The probabilities and their mean are float64: sums in another order, as ranks and microbatches make them, differ far
below the last bit of the float32 weight, and equal NLLs give weights of exactly 1.

Shape suffixes: M microbatches of a step, B sequences, S sequence positions on this rank.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup


@torch.no_grad()
def confidence_weights(reference_nll_MBS: Tensor, mask_MBS: Tensor, batch_group: ProcessGroup | None = None) -> Tensor:
    """``exp(-nll_ref)`` over its mean over the unmasked tokens of the global batch, float32 [M, B, S].

    Masked tokens have a weight too, which the loss mask removes; they do not count in the mean.

    Args:
        reference_nll_MBS: the reference's NLLs of all microbatches of the step on this rank, nats.
        mask_MBS: 1 for tokens that count, 0 for the others.
        batch_group: the ranks that hold the other parts of the global batch: data- and context-parallel ranks.

    Raises:
        ValueError: shapes differ.
    """
    if reference_nll_MBS.shape != mask_MBS.shape:
        raise ValueError(
            f"reference NLL {tuple(reference_nll_MBS.shape)} and loss mask {tuple(mask_MBS.shape)} must have one shape"
        )
    probability_MBS = reference_nll_MBS.double().neg().exp()
    total_2 = torch.stack([(probability_MBS * mask_MBS).sum(), mask_MBS.double().sum()])
    if batch_group is not None and batch_group.size() > 1:
        torch.distributed.all_reduce(total_2, group=batch_group)
    mean = total_2[0] / total_2[1].clamp(min=1)
    return (probability_MBS / mean).float()
