"""ReMiT (paper, equation 6), and its control with permuted weights."""

from typing import Any

from torch import Tensor

from megatron_remit.data.batch import Batch
from megatron_remit.loss import LossResult, remit_loss
from megatron_remit.objectives.base import Objective


class Remit(Objective):
    """Each token's NLL times a weight from the reference."""

    name = "remit"
    summary = "weights from a reference (paper, equations 3-6)"
    needs_reference = True

    def add_arguments(self, group: Any) -> None:
        group.add_argument(
            "--remit-control",
            choices=("none", "permute"),
            default="none",
            help="permute: a control run, with each sequence's weights on other tokens of it.",
        )

    def loss(self, batch: Batch, output: Tensor) -> LossResult:
        return remit_loss(
            batch["loss_mask"], batch["reference_nll"], output, batch["sample"], batch.get("document_ids")
        )
