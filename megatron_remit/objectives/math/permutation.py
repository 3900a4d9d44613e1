"""The control "permuted weights": the same weights on other tokens of the same sequence.

If ReMiT gains by which tokens it favours, this run must lose the gain: its weights have the same histogram, sequence by
sequence, but no relation to the tokens that they stand on.

Shape suffixes: B microbatch, S sequence positions on this rank, W positions of the whole sequence.
"""

import numpy
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_remit.parallel import own_part, whole_sequence


@torch.no_grad()
def permute_weights(
    weight_BS: Tensor, mask_BS: Tensor, sample_B: Tensor, seed: int, cp_group: ProcessGroup | None = None
) -> Tensor:
    """The weights of each sequence's unmasked tokens in a random order; masked tokens keep theirs. [B, S].

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
