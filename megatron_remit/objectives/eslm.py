"""ESLM: the loss of the tokens at or above the batch's value at risk (Bal et al. 2025, arXiv 2505.19893).

A selection without a reference: a token's score is the policy's own NLL. Next to RHO-1 it tells what selection gives
and what the reference. The paper's other score, the entropy of the policy's distribution, is not offered. The choice
itself is in ``math/selection.py``.

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
    number_in,
    select_in_step,
    selected_loss,
)
from megatron_remit.objectives.math.selection import (
    Scope,
    choose_in_microbatch,
    select_at_risk,
)


class Eslm(Objective):
    """The sum of the NLLs of the tokens that are hardest for the policy, divided by their number."""

    name = "eslm"
    summary = "only the tokens with the highest loss of the policy itself, no reference (ESLM)"
    reads_step = True

    @classmethod
    def add_arguments(cls, group: Any) -> None:
        group.add_argument(
            "--eslm-alpha",
            type=number_in(0.0, 1.0 - 1e-9, True, "is not a number in [0, 1); 0 keeps all tokens"),
            default=0.2,
            metavar="A",
            help="eslm keeps the tokens whose loss is at least the A-quantile of the losses, in [0, 1): about 1 - A "
            "of them.",
        )
        group.add_argument(
            "--eslm-scope",
            choices=("sequence", "microbatch", "global-batch"),
            default="microbatch",
            help="Tokens whose losses make eslm's quantile. global-batch costs one more forward pass of the policy: "
            "the quantile must be known before the first gradient.",
        )

    def __init__(self, args: argparse.Namespace, tokenizer: Any) -> None:
        super().__init__(args, tokenizer)
        self.choice = partial(select_at_risk, alpha=args.eslm_alpha)
        self.scope: Scope = args.eslm_scope

    def look_ahead(self, step: Step) -> None:
        """For ``global-batch``: mark the selected tokens of the whole step by a forward pass of the policy."""
        if self.scope != "global-batch":
            return
        nlls = step.policy_nll()
        if not nlls:
            return
        select_in_step(step.batches[-1], [nll_BS.float() for nll_BS in nlls], self.choice)

    def loss(self, batch: Batch, output: Tensor) -> LossResult:
        """``output`` is the policy's NLL [B, S]; the sum of the selected tokens' NLLs and their number."""
        nll_BS, mask_BS = output.float(), batch["loss_mask"].float()
        selected_BS = batch.get("selected")
        if selected_BS is None:
            group = context_parallel_group()
            selected_BS = choose_in_microbatch(self.choice, nll_BS.detach(), mask_BS, self.scope, group)
        keep_figures(batch, nll=nll_BS, kept=selected_BS)
        return selected_loss(self.name, nll_BS, mask_BS, selected_BS)
