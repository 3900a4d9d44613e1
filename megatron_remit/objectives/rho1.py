"""RHO-1: the loss of the tokens with the highest excess over the reference, divided by their number.

The choice itself is in ``math/selection.py``.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank.
"""

import argparse
from functools import partial
from typing import Any

from torch import Tensor

from megatron_remit.data.batch import Batch
from megatron_remit.objectives.base import (
    LossResult,
    Objective,
    Step,
    context_parallel_group,
    keep_figures,
    masked_mean,
    number_in,
    select_in_step,
    selected_loss,
)
from megatron_remit.objectives.math.selection import Scope, select_highest, select_in_microbatch


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
        excess = [nll_BS.float() - batch["reference_nll"] for nll_BS, batch in zip(nlls, scored, strict=True)]
        select_in_step(scored, excess, partial(select_highest, ratio=self.ratio))

    def loss(self, batch: Batch, output: Tensor) -> LossResult:
        """The sum of the selected tokens' NLLs and their number; the report covers the unmasked tokens too."""
        nll_BS, mask_BS = output.float(), batch["loss_mask"].float()
        excess_BS = nll_BS.detach() - batch["reference_nll"]
        selected_BS = batch.get("selected")
        if selected_BS is None:
            selected_BS = select_in_microbatch(excess_BS, mask_BS, self.ratio, self.scope, context_parallel_group())
        loss, num_selected, report = selected_loss(self.name, nll_BS, mask_BS, selected_BS)
        report |= {
            "reference nll": masked_mean(batch["reference_nll"], mask_BS),
            "delta mean": masked_mean(excess_BS, mask_BS),
            "kept delta mean": masked_mean(excess_BS, selected_BS),
        }
        keep_figures(batch, nll=nll_BS, delta=excess_BS, kept=selected_BS)
        return loss, num_selected, report
