"""Contrast: ReMiT's weights, with the gap between two frozen models in the place of that between policy and reference.

``delta_t = nll_base(t) - nll_reference(t) = log p_RL - log p_before_RL``, where the base is the model that the
reference was tuned from. What any better model of the same text would bring cancels, and what the RL stage changed is
left. Centering, sigmoid and clip are ReMiT's own (``math/weights.py``). From two score stores a step costs what one of
next-token prediction does. From no paper: a variant of this project.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank.
"""

from typing import Any

from torch import Tensor

from megatron_remit.data.batch import Batch
from megatron_remit.objectives.base import LossResult, masked_mean
from megatron_remit.objectives.remit import Remit


class Contrast(Remit):
    """The sum of ``w_t * NLL_t``, the weights from two references. It takes ReMiT's flags."""

    name = "contrast"
    summary = "ReMiT's weights from two references, the RL model and the model before RL"
    needs_base = True

    @classmethod
    def add_arguments(cls, group: Any) -> None:
        """None of its own."""

    def compared_nll(self, batch: Batch, nll_BS: Tensor) -> Tensor:
        return batch["base_nll"]

    def loss(self, batch: Batch, output: Tensor) -> LossResult:
        loss, num_tokens, report = super().loss(batch, output)
        return loss, num_tokens, report | {"base nll": masked_mean(batch["base_nll"], batch["loss_mask"])}
