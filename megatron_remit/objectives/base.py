"""What the training program asks of an objective. The base class is next-token prediction.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module

from megatron_remit.data.batch import Batch
from megatron_remit.loss import LossResult, ntp_loss
from megatron_remit.nll import Output, nll_output


@dataclass(frozen=True)
class Step:
    """A training step whose microbatches are read and scored, before the policy trains on them."""

    batches: list[list[Batch]]
    """The microbatches of each model chunk of this rank; those of the last chunk of the last stage are scored."""
    reference: list[Module]
    """The reference's model chunks on this rank."""
    policy_nll: Callable[[], list[Tensor]]
    """Runs the policy forward over the step, in ``eval`` mode and without gradients: the NLL [B, S] of each microbatch
    on the last pipeline stage, elsewhere nothing. All ranks must call it, or none."""


class Objective:
    """Next-token prediction, and what another objective may replace."""

    name = "ntp"
    summary = "each token weighs 1"
    needs_reference = False
    kept = "reference_nll"
    """The microbatch's entry that holds what the reference's pass gave."""

    def add_arguments(self, group: Any) -> None:
        """Add this objective's flags to the ReMiT argument group."""

    def reference_output(self) -> Output:
        """What the reference computes from its final hidden states, batch first; kept for each microbatch."""
        return nll_output()

    def look_ahead(self, step: Step) -> None:
        """Called once a step on every rank, after the reference and before the policy: may add to the microbatches."""

    def policy_output(self, batch: Batch) -> Output:
        """What the policy computes from its final hidden states for this microbatch, with gradients."""
        return nll_output()

    def loss(self, batch: Batch, output: Tensor) -> LossResult:
        """The loss of one microbatch from :meth:`policy_output`'s result (see :mod:`megatron_remit.loss`)."""
        return ntp_loss(batch["loss_mask"], output)
