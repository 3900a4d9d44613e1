"""Token cleaning: the loss of the tokens on which the reference is better than its frozen base (Pang et al. 2025,
"Token Cleaning", arXiv 2502.01968, fixed-model cleaning).

A token's score is ``nll_base - nll_reference``, of two frozen models, so it is RHO-1's excess with the policy as it was
at the start, and from two score stores a step costs what one of next-token prediction does. The paper ranks the tokens
of the whole data set; here those of the global batch compete for a share, or an absolute threshold holds throughout.
The choice itself is in ``math/selection.py``.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank.
"""

import argparse
import math
from functools import partial
from typing import Any

from torch import Tensor

from megatron_remit.data.batch import Batch
from megatron_remit.errors import UserError
from megatron_remit.objectives.base import (
    LossResult,
    Objective,
    Step,
    keep_figures,
    masked_mean,
    number_in,
    select_in_step,
    selected_loss,
)
from megatron_remit.objectives.math.selection import select_highest

_KEEP_RATIO = 0.6


class TokenCleaning(Objective):
    """The sum of the NLLs of the tokens with the highest score, divided by their number."""

    name = "tokenclean"
    summary = "only the tokens that the reference predicts better than its base (token cleaning)"
    needs_reference = True
    needs_base = True

    @classmethod
    def add_arguments(cls, group: Any) -> None:
        group.add_argument(
            "--tokenclean-keep-ratio",
            type=number_in(0.0, 1.0, False, "is not a number in (0, 1]; 1 keeps all tokens"),
            metavar="R",
            help=f"Share of the global batch's tokens that tokenclean keeps, in (0, 1]. Default: {_KEEP_RATIO}.",
        )
        group.add_argument(
            "--tokenclean-threshold",
            type=number_in(-math.inf, math.inf, False, "is not a number of nats"),
            metavar="NATS",
            help="Instead of a share: tokenclean keeps the tokens whose base NLL exceeds the reference's by at least "
            "this. Default: none.",
        )

    @classmethod
    def check_arguments(cls, args: argparse.Namespace, chosen: bool) -> None:
        if args.tokenclean_threshold is not None and args.tokenclean_keep_ratio is not None:
            raise UserError(
                f"--tokenclean-threshold {args.tokenclean_threshold:g} and --tokenclean-keep-ratio "
                f"{args.tokenclean_keep_ratio:g} are two ways to choose the tokens; give one of them"
            )

    def __init__(self, args: argparse.Namespace, tokenizer: Any) -> None:
        super().__init__(args, tokenizer)
        self.ratio: float = _KEEP_RATIO if args.tokenclean_keep_ratio is None else args.tokenclean_keep_ratio
        self.threshold: float | None = args.tokenclean_threshold

    def look_ahead(self, step: Step) -> None:
        """For a share: choose among all tokens of the step. The policy is not needed for it."""
        scored = step.batches[-1]
        if self.threshold is not None or scored[0].get("base_nll") is None:
            return  # the loss compares each token with the threshold; or a rank that computes no loss
        select_in_step(scored, [_score(batch) for batch in scored], partial(select_highest, ratio=self.ratio))

    def loss(self, batch: Batch, output: Tensor) -> LossResult:
        """``output`` is the policy's NLL [B, S]; the sum of the selected tokens' NLLs and their number."""
        nll_BS, mask_BS = output.float(), batch["loss_mask"].float()
        score_BS = _score(batch)
        if self.threshold is None:
            selected_BS = batch["selected"]
        else:
            selected_BS = (score_BS >= self.threshold) & (mask_BS > 0)
        loss, num_selected, report = selected_loss(self.name, nll_BS, mask_BS, selected_BS)
        report |= {
            "reference nll": masked_mean(batch["reference_nll"], mask_BS),
            "base nll": masked_mean(batch["base_nll"], mask_BS),
            "delta mean": masked_mean(score_BS, mask_BS),
            "kept delta mean": masked_mean(score_BS, selected_BS),
        }
        keep_figures(batch, nll=nll_BS, delta=score_BS, kept=selected_BS)
        return loss, num_selected, report

    def finish_report(self, report: dict[str, Tensor]) -> None:
        """A step in which no token reaches the threshold trains on nothing: its means over no tokens are 0."""
        for name in ("tokenclean loss", "kept delta mean"):
            if name in report:
                report[name] = report[name].nan_to_num(nan=0.0)


def _score(batch: Batch) -> Tensor:
    """By how many nats the reference predicts each token better than its base, [B, S]."""
    return batch["base_nll"] - batch["reference_nll"]
