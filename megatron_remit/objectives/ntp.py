"""Next-token prediction (paper, equation 2): Megatron's own objective, and what every run is evaluated with.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank, N = B * S tokens.
"""

import torch
from torch import Tensor

from megatron_remit.data.batch import Batch
from megatron_remit.objectives.base import LossResult, Objective, keep_figures, mean


class NextToken(Objective):
    """The sum of the unmasked NLLs, in nats."""

    name = "ntp"
    summary = "each token weighs 1"

    def loss(self, batch: Batch, output: Tensor) -> LossResult:
        """``output`` is the policy's NLL [B, S]."""
        mask_N = batch["loss_mask"].reshape(-1).float()
        loss = (output.reshape(-1).float() * mask_N).sum()
        num_tokens = mask_N.sum().detach().to(torch.int)
        keep_figures(batch, nll=output)
        return loss, num_tokens, {"lm loss": mean(loss, num_tokens)}
