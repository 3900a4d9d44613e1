"""RHO-1: the loss of the tokens with the highest excess over the reference, divided by their number.

The choice itself is in ``math/selection.py``.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank, N = B * S tokens, M microbatches of a
step.
"""

import argparse
from typing import Any

import torch
from megatron.core import mpu
from torch import Tensor

from megatron_remit.data.batch import Batch
from megatron_remit.objectives.base import LossResult, Objective, Step, context_parallel_group, mean, number_in
from megatron_remit.objectives.math.selection import Scope, select_in_global_batch, select_in_microbatch


class Rho1(Objective):
    """Token selection (Lin et al. 2024), with any reference."""

    name = "rho1"
    summary = "only the tokens with the highest excess loss over a reference (RHO-1)"
    needs_reference = True

    @classmethod
    def add_arguments(cls, group: Any) -> None:
        group.add_argument(
            "--rho1-keep-ratio",
            type=number_in(0.0, 1.0, False, "is not a number in (0, 1]; the paper keeps 0.8, 1 keeps all tokens"),
            default=0.8,
            metavar="R",
            help="Share of tokens that rho1 keeps, in (0, 1].",
        )
        group.add_argument(
            "--rho1-scope",
            choices=("sequence", "microbatch", "global-batch"),
            default="sequence",
            help="Tokens that rho1 ranks against each other. global-batch costs one more forward pass of the policy: "
            "the ranking must be known before the first gradient.",
        )

    def __init__(self, args: argparse.Namespace, tokenizer: Any) -> None:
        super().__init__(args, tokenizer)
        self.ratio: float = args.rho1_keep_ratio
        self.scope: Scope = args.rho1_scope

    def look_ahead(self, step: Step) -> None:
        """For ``global-batch``: rank the whole step's tokens by a forward pass of the policy, mark the selected."""
        if self.scope != "global-batch":
            return
        nlls = step.policy_nll()
        if not nlls:
            return
        scored = step.batches[-1]
        excess_MBS = torch.stack(
            [nll_BS.float() - batch["reference_nll"] for nll_BS, batch in zip(nlls, scored, strict=True)]
        )
        mask_MBS = torch.stack([batch["loss_mask"].float() for batch in scored])
        selected_MBS = select_in_global_batch(
            excess_MBS, mask_MBS, self.ratio, mpu.get_data_parallel_group(), context_parallel_group()
        )
        for batch, selected_BS in zip(scored, selected_MBS, strict=True):
            batch["selected"] = selected_BS

    def loss(self, batch: Batch, output: Tensor) -> LossResult:
        """The sum of the selected tokens' NLLs and their number; the report covers the unmasked tokens too."""
        nll_BS, mask_BS = output.float(), batch["loss_mask"].float()
        excess_BS = nll_BS.detach() - batch["reference_nll"]
        selected_BS = batch.get("selected")
        if selected_BS is None:
            selected_BS = select_in_microbatch(excess_BS, mask_BS, self.ratio, self.scope, context_parallel_group())
        nll_N, mask_N, selected_N = nll_BS.reshape(-1), mask_BS.reshape(-1), selected_BS.reshape(-1).float()
        num_tokens, num_selected = mask_N.sum().to(torch.int), selected_N.sum().to(torch.int)
        # In the order of next-token prediction: with all tokens selected the same bits.
        loss = (nll_N * selected_N).sum()
        excess_N = excess_BS.reshape(-1)
        report = {
            "lm loss": mean((nll_N.detach() * mask_N).sum(), num_tokens),
            "rho1 loss": mean(loss, num_selected),
            "reference nll": mean((batch["reference_nll"].reshape(-1) * mask_N).sum(), num_tokens),
            "delta mean": mean((excess_N * mask_N).sum(), num_tokens),
            "kept delta mean": mean((excess_N * selected_N).sum(), num_selected),
            "kept share": mean(selected_N.sum(), num_tokens),
        }
        return loss, num_selected, report
