"""Knowledge distillation (paper, equation 12): the policy's whole distribution is drawn to the reference's.

A token's loss is ``alpha * T^2 * KL + (1 - alpha) * NLL``, with the KL divergence of the policy from the reference at
temperature T. T^2 keeps the size of the gradient as T grows (Hinton et al. 2015, "Distilling the Knowledge in a Neural
Network"). At alpha 1 and T 1 it is equation 12 less the reference's entropy, with the same gradient.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank (s: their part on a sequence-parallel
rank), H the reference's hidden size, V vocabulary rows of this tensor-parallel rank, N tokens of a microbatch.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.utils import unwrap_model
from megatron.training import get_args
from torch import Tensor

from megatron_remit.data.batch import Batch
from megatron_remit.kernels.vocab_parallel_kl import vocab_parallel_kl
from megatron_remit.loss import LossResult, check_loss, pair
from megatron_remit.nll import Output, nll_output, token_nll
from megatron_remit.objectives.base import Objective, Step


@dataclass(frozen=True)
class _Teacher:
    """The reference's distribution over the tokens of one microbatch, before its output layer."""

    nll_context: Any
    """What :func:`token_nll` takes as its context."""
    hidden_BsH: Tensor
    weight_VH: Tensor
    scale_logits: Callable[[Tensor], Tensor]
    vocabulary_size: int
    temperature: float


class Distillation(Objective):
    """Forward KL to the reference plus NTP."""

    name = "kd"
    summary = "knowledge distillation from the reference over the whole vocabulary (equation 12)"
    needs_reference = True
    kept = "reference_hidden"

    def __init__(self) -> None:
        self._head: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None

    def add_arguments(self, group: Any) -> None:
        group.add_argument(
            "--kd-alpha",
            type=_alpha,
            default=1.0,
            metavar="A",
            help="Share of kd's loss that is the KL divergence, in [0, 1]; the rest is NTP.",
        )
        group.add_argument(
            "--kd-temperature",
            type=_temperature,
            default=1.0,
            metavar="T",
            help="Divides the logits of policy and reference in the KL divergence, above 0.",
        )

    def reference_output(self) -> Output:
        """The final hidden states: one number for each hidden unit, where the logits would be one for each token id."""
        return Output(_final_hidden, None, get_args().params_dtype)

    def look_ahead(self, step: Step) -> None:
        model = unwrap_model(step.reference[-1])
        if not model.post_process:
            return
        tied = model.share_embeddings_and_output_weights
        weight_VH = model.shared_embedding_or_output_weight() if tied else model.output_layer.weight
        self._head = (weight_VH, model._scale_logits)

    def policy_output(self, batch: Batch) -> Output:
        """NLL and KL of each token, [2, B, S] in nats."""
        nll, args = nll_output(), get_args()
        hidden_BsH = batch.get(self.kept)
        if hidden_BsH is None or self._head is None:
            return nll  # a model chunk that does not end the model
        weight_VH, scale_logits = self._head
        teacher = _Teacher(nll.context, hidden_BsH, weight_VH, scale_logits, args.remit_vocab_size, args.kd_temperature)
        return Output(_nll_and_kl, teacher)

    def loss(self, batch: Batch, output: Tensor) -> LossResult:
        """The sum of the tokens' losses and their number."""
        args = get_args()
        nll_N, kl_N = output.float().reshape(2, -1)
        mask_N = batch["loss_mask"].reshape(-1).float()
        num_tokens = mask_N.sum().to(torch.int)
        # With alpha 0 a token's loss is 1 * NLL + 0 * KL: the bits of `ntp_loss`.
        mixed_N = (1.0 - args.kd_alpha) * nll_N + args.kd_alpha * args.kd_temperature**2 * kl_N
        loss = (mixed_N * mask_N).sum()
        check_loss(loss)
        report = {
            "lm loss": pair((nll_N * mask_N).sum(), num_tokens),
            "kd loss": pair(loss, num_tokens),
            "reference kl": pair((kl_N * mask_N).sum(), num_tokens),
        }
        return loss, num_tokens, report


def _final_hidden(*, hidden_states: Tensor, **_: object) -> Tensor:
    return hidden_states.transpose(0, 1)


def _nll_and_kl(*, context: _Teacher, scale_logits: Callable[[Tensor], Tensor], **rest: Any) -> Tensor:
    """An ``output_processor``: NLL and KL of each token, [2, B, S]."""
    hidden_sBH = context.hidden_BsH.transpose(0, 1)
    if get_args().sequence_parallel:
        hidden_sBH = gather_from_sequence_parallel_region(hidden_sBH.contiguous())
    divergence: list[Tensor] = []

    def scale_and_compare(logits_SBV: Tensor) -> Tensor:
        # Where `token_nll` has made the logits and before it uses them: it, or its backward pass, may overwrite them.
        scaled_SBV = scale_logits(logits_SBV)
        divergence.append(
            vocab_parallel_kl(
                scaled_SBV, hidden_sBH, context.weight_VH, context.vocabulary_size, context.temperature,
                mpu.get_tensor_model_parallel_group(), context.scale_logits,
            )
        )  # fmt: skip
        return scaled_SBV

    nll_BS = token_nll(context=context.nll_context, scale_logits=scale_and_compare, **rest)
    return torch.stack([nll_BS.float(), divergence[0].transpose(0, 1)])


def _alpha(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in [0, 1]; 0 is NTP, 1 is the KL divergence alone")
    return value


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0; 1 leaves the distributions as they are")
    return value
