"""Knowledge distillation (paper, equation 12): the policy's whole distribution is drawn to the reference's.

The loss per token is ``alpha * T^2 * KL + (1 - alpha) * NLL``, with the KL divergence of the policy from the reference
at temperature T. T^2 keeps the size of the gradient as T grows (Hinton et al. 2015, "Distilling the Knowledge in a
Neural Network"). At alpha 1 and T 1 it is equation 12 less the reference's entropy, with the same gradient.

Both distributions of the divergence are taken over the token ids that both models have a row for. A row that only the
policy has gets no gradient from the divergence; in the NLL it takes part as always.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank (s: their part on a sequence-parallel
rank), H the reference's hidden size, V vocabulary rows of this tensor-parallel rank, N = B * S tokens.
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
from torch import Tensor

from megatron_remit.data.batch import Batch
from megatron_remit.errors import UserError
from megatron_remit.kernels.vocab_parallel_kl import vocab_parallel_kl
from megatron_remit.kernels.vocab_parallel_logprob import choose_implementation
from megatron_remit.nll import Head, Output, Vocabulary, nll_from_logits, nll_output
from megatron_remit.objectives.base import LossResult, Objective, Step, keep_figures, mean, number_in


@dataclass(frozen=True)
class _Teacher:
    """The reference's distribution over the tokens of one microbatch, before its output layer."""

    hidden_BsH: Tensor
    weight_VH: Tensor
    scale_logits: Callable[[Tensor], Tensor]
    temperature: float
    sequence_parallel: bool
    vocabulary: Vocabulary
    """The policy's, for the NLL."""
    common: Vocabulary
    """The rows that both models have: over these both distributions are taken for the divergence."""


class Distillation(Objective):
    """Forward KL to the reference plus NTP."""

    name = "kd"
    summary = "knowledge distillation from the reference over the whole vocabulary (equation 12)"
    needs_reference = True
    reference_column = "reference_hidden"

    @classmethod
    def add_arguments(cls, group: Any) -> None:
        group.add_argument(
            "--kd-alpha",
            type=number_in(0.0, 1.0, True, "is not a number in [0, 1]; 0 is NTP, 1 is the KL divergence alone"),
            default=1.0,
            metavar="A",
            help="Share of kd's loss that is the KL divergence, in [0, 1]; the rest is NTP.",
        )
        group.add_argument(
            "--kd-temperature",
            type=number_in(0.0, math.inf, False, "is not a number above 0; 1 leaves the distributions as they are"),
            default=1.0,
            metavar="T",
            help="Divides the logits of policy and reference in the KL divergence, above 0.",
        )

    @classmethod
    def check_arguments(cls, args: argparse.Namespace, chosen: bool) -> None:
        if chosen and args.fp16:
            raise UserError(
                "--objective kd with --fp16: the gradient of the KL divergence is made before the loss scale "
                "multiplies it, and its small parts would be zero in fp16; use --bf16 or fp32"
            )

    def __init__(self, args: argparse.Namespace, tokenizer: Any) -> None:
        super().__init__(args, tokenizer)
        self.alpha: float = args.kd_alpha
        self.temperature: float = args.kd_temperature
        self._sequence_parallel: bool = args.sequence_parallel
        self._hidden_dtype: torch.dtype = args.params_dtype
        self._reference_head: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None

    def reference_output(self) -> Output:
        """The final hidden states: H numbers per token, where the logits would be one number per token id."""
        return Output(_final_hidden, None, self._hidden_dtype)

    def look_ahead(self, step: Step) -> None:
        model = unwrap_model(step.reference[-1])
        if not model.post_process:
            return
        tied = model.share_embeddings_and_output_weights
        weight_VH = model.shared_embedding_or_output_weight() if tied else model.output_layer.weight
        self._reference_head = (weight_VH, model._scale_logits)

    def policy_output(self, batch: Batch) -> Output:
        """NLL and KL per token, [2, B, S] in nats."""
        hidden_BsH = batch.get("reference_hidden")
        if hidden_BsH is None or self._reference_head is None:
            return nll_output(self.vocabulary)  # a model chunk that does not end the model
        teacher = _Teacher(
            hidden_BsH,
            *self._reference_head,
            self.temperature,
            self._sequence_parallel,
            self.vocabulary,
            self.reference_vocabulary,
        )
        return Output(_nll_and_kl, teacher)

    def loss(self, batch: Batch, output: Tensor) -> LossResult:
        """The sum of the tokens' losses and their number; ``output`` is [2, B, S]."""
        keep_figures(batch, nll=output[0].float())
        nll_N, kl_N = output.float().reshape(2, -1)
        mask_N = batch["loss_mask"].reshape(-1).float()
        num_tokens = mask_N.sum().to(torch.int)
        # With alpha 0 a token's loss is 1 * NLL + 0 * KL: the bits of next-token prediction.
        mixed_N = (1.0 - self.alpha) * nll_N + self.alpha * self.temperature**2 * kl_N
        loss = (mixed_N * mask_N).sum()
        report = {
            "lm loss": mean((nll_N * mask_N).sum(), num_tokens),
            "kd loss": mean(loss, num_tokens),
            "reference kl": mean((kl_N * mask_N).sum(), num_tokens),
        }
        return loss, num_tokens, report


def _final_hidden(*, hidden_states: Tensor, **_: object) -> Tensor:
    return hidden_states.transpose(0, 1)


def _nll_and_kl(
    *,
    context: _Teacher,
    labels: Tensor,
    compute_language_model_loss: Callable[[Tensor, Tensor], Tensor],
    **rest: Any,
) -> Tensor:
    """An ``output_processor``: NLL and KL per token, [2, B, S]."""
    hidden_sBH = context.hidden_BsH.transpose(0, 1)
    if context.sequence_parallel:
        hidden_sBH = gather_from_sequence_parallel_region(hidden_sBH.contiguous())
    head = Head.of(rest)
    logits_SBV = head.logits()
    # Before the NLL, which may overwrite the logits, in its forward or in its backward pass.
    kl_SB = vocab_parallel_kl(
        logits_SBV,
        hidden_sBH,
        context.weight_VH,
        context.common.size,
        context.temperature,
        mpu.get_tensor_model_parallel_group(),
        context.scale_logits,
        implementation=_implementation(context.vocabulary, logits_SBV.device),
    )
    nll_BS = nll_from_logits(logits_SBV, labels, context.vocabulary, head.tp_group, compute_language_model_loss)
    return torch.stack([nll_BS.float(), kl_SB.transpose(0, 1)])


def _implementation(vocabulary: Vocabulary, device: torch.device) -> str:
    """That of the NLL; Megatron has no divergence, so its cross-entropy goes with plain torch."""
    chosen = choose_implementation(vocabulary.cross_entropy_impl, device)
    return "torch" if chosen == "megatron" else chosen
