"""PriFT: each token's NLL times the reference's confidence in it (Wang et al. 2026, arXiv 2606.09396).

The weight is the probability that the reference gives the token, over its mean in the global batch. It asks whether
ReMiT's gap between policy and reference is needed, or the reference's confidence alone. The paper's reference is the
model before fine-tuning; here it is whatever ``--reference-load`` or the store names. The weights themselves are in
``math/confidence.py``.

Shape suffixes: M microbatches of a step, B sequences of a microbatch, S sequence positions on this rank, N = B * S
tokens.
"""

import torch
from megatron.core import mpu
from torch import Tensor

from megatron_remit.data.batch import Batch
from megatron_remit.objectives.base import (
    LossResult,
    Objective,
    Step,
    finish_weight_std,
    keep_figures,
    masked_mean,
    mean,
)
from megatron_remit.objectives.math.confidence import confidence_weights


class Prift(Objective):
    """The sum of ``w_t * NLL_t`` over the unmasked tokens; the weights have mean 1 over the global batch."""

    name = "prift"
    summary = "weights from the reference's confidence alone (PriFT)"
    needs_reference = True

    def look_ahead(self, step: Step) -> None:
        """The step's weights: their mean is known once the reference's NLLs of every microbatch are."""
        scored = step.batches[-1]
        if scored[0].get("reference_nll") is None:
            return  # a rank that computes no loss
        nll_MBS = torch.stack([batch["reference_nll"] for batch in scored])
        mask_MBS = torch.stack([batch["loss_mask"].float() for batch in scored])
        group = mpu.get_data_parallel_group(with_context_parallel=True)
        for batch, weight_BS in zip(scored, confidence_weights(nll_MBS, mask_MBS, group), strict=True):
            batch["weight"] = weight_BS

    def loss(self, batch: Batch, output: Tensor) -> LossResult:
        """``output`` is the policy's NLL [B, S]; the divisor is the number of tokens, as in equation 6."""
        nll_BS, mask_BS, weight_BS = output.float(), batch["loss_mask"].float(), batch["weight"]
        mask_N = mask_BS.reshape(-1)
        num_tokens = mask_N.sum().to(torch.int)
        # In the order of next-token prediction: weights of 1 give the same bits.
        loss = (nll_BS.reshape(-1) * weight_BS.reshape(-1) * mask_N).sum()
        report = {
            "lm loss": masked_mean(nll_BS.detach(), mask_BS),
            "prift loss": mean(loss, num_tokens),
            "reference nll": masked_mean(batch["reference_nll"], mask_BS),
            "weight mean": masked_mean(weight_BS, mask_BS),
            "weight square": masked_mean(weight_BS.square(), mask_BS),
        }
        keep_figures(batch, nll=nll_BS, weight=weight_BS)
        return loss, num_tokens, report

    def finish_report(self, report: dict[str, Tensor]) -> None:
        finish_weight_std(report)
