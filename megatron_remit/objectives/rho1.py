"""RHO-1: the loss of the tokens with the highest excess over the reference, divided by their number.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank, N tokens of a microbatch.
"""

import argparse
from typing import Any

import torch
from megatron.core import mpu
from megatron.training import get_args
from torch import Tensor

from megatron_remit.data.batch import Batch
from megatron_remit.loss import LossResult, check_loss, cp_group, pair
from megatron_remit.objectives.base import Objective, Step
from megatron_remit.objectives.math.selection import keep_in_global_batch, keep_in_microbatch


class Rho1(Objective):
    """Token selection (Lin et al. 2024), with any reference."""

    name = "rho1"
    summary = "only the tokens with the highest excess loss over a reference (RHO-1)"
    needs_reference = True

    def add_arguments(self, group: Any) -> None:
        group.add_argument(
            "--rho1-keep-ratio",
            type=_keep_ratio,
            default=0.8,
            metavar="R",
            help="Share of tokens that rho1 keeps, in (0, 1].",
        )
        group.add_argument(
            "--rho1-scope",
            choices=("sequence", "microbatch", "global-batch"),
            default="sequence",
            help="Tokens that rho1 ranks against each other. global-batch costs one more forward pass "
            "of the policy: the ranking must be known before the first gradient.",
        )

    def look_ahead(self, step: Step) -> None:
        """For ``global-batch``: rank the whole step's tokens by a forward pass of the policy, mark those to keep."""
        args = get_args()
        if args.rho1_scope != "global-batch":
            return
        nlls = step.policy_nll()
        if not nlls:
            return
        scored = step.batches[-1]
        excess_MBS = torch.stack(
            [nll_BS.float() - batch["reference_nll"] for nll_BS, batch in zip(nlls, scored, strict=True)]
        )
        mask_MBS = torch.stack([batch["loss_mask"].float() for batch in scored])
        kept_MBS = keep_in_global_batch(
            excess_MBS, mask_MBS, args.rho1_keep_ratio, mpu.get_data_parallel_group(), cp_group()
        )
        for batch, kept_BS in zip(scored, kept_MBS, strict=True):
            batch["rho1_kept"] = kept_BS

    def loss(self, batch: Batch, output: Tensor) -> LossResult:
        """The sum of the kept tokens' NLLs and their number; the report tells kept tokens from all unmasked ones."""
        args = get_args()
        nll_BS, mask_BS = output.float(), batch["loss_mask"].float()
        excess_BS = nll_BS.detach() - batch["reference_nll"]
        kept_BS = batch.get("rho1_kept")
        if kept_BS is None:
            kept_BS = keep_in_microbatch(excess_BS, mask_BS, args.rho1_keep_ratio, args.rho1_scope, cp_group())
        nll_N, mask_N, kept_N = nll_BS.reshape(-1), mask_BS.reshape(-1), kept_BS.reshape(-1).float()
        num_tokens, num_kept = mask_N.sum().to(torch.int), kept_N.sum().to(torch.int)
        # In the order of `ntp_loss`: with all tokens kept the same bits.
        loss = (nll_N * kept_N).sum()
        check_loss(loss)
        excess_N = excess_BS.reshape(-1)
        report = {
            "lm loss": pair((nll_N.detach() * mask_N).sum(), num_tokens),
            "rho1 loss": pair(loss, num_kept),
            "reference nll": pair((batch["reference_nll"].reshape(-1) * mask_N).sum(), num_tokens),
            "delta mean": pair((excess_N * mask_N).sum(), num_tokens),
            "kept delta mean": pair((excess_N * kept_N).sum(), num_kept),
            "kept share": pair(kept_N.sum(), num_tokens),
        }
        return loss, num_kept, report


def _keep_ratio(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in (0, 1]; the paper keeps 0.8, 1 keeps all tokens")
    return value
