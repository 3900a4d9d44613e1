"""ReMiT (paper, equation 6): each token's NLL times a weight from the reference, and the control with permuted weights.

The weights themselves (equations 3-5) are in ``math/weights.py``.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank, W positions of the whole sequence,
N = B * S tokens.
"""

import argparse
from typing import Any

import torch
from torch import Tensor

from megatron_remit.data.batch import Batch
from megatron_remit.errors import UserError
from megatron_remit.objectives.base import (
    LossResult,
    Objective,
    context_parallel_group,
    finish_weight_std,
    keep_figures,
    mean,
)
from megatron_remit.objectives.math.weights import Centering, document_ids, permute_weights, remit_weights


class Remit(Objective):
    """The sum of ``w_t * NLL_t`` over the unmasked tokens; the NTP loss is reported next to it."""

    name = "remit"
    summary = "weights from a reference (paper, equations 3-6)"
    needs_reference = True

    @classmethod
    def add_arguments(cls, group: Any) -> None:
        group.add_argument(
            "--remit-epsilon",
            type=_epsilon,
            default=0.2,
            metavar="E",
            help="Clip width of the weights, in [0, 1] (equation 5); 'none' turns clipping off.",
        )
        group.add_argument(
            "--remit-centering",
            choices=("sequence", "document", "none"),
            default="sequence",
            help="Subtract the mean delta of each sequence before the sigmoid (equation 4), that of each document "
            "inside it, or nothing.",
        )
        group.add_argument(
            "--remit-control",
            choices=("none", "permute"),
            default="none",
            help="permute: a control run, with each sequence's weights on other tokens of it.",
        )

    @classmethod
    def check_arguments(cls, args: argparse.Namespace, chosen: bool) -> None:
        if args.remit_control != "none" and not chosen:
            raise UserError(
                f"--remit-control {args.remit_control} changes the weights of --objective remit, and the objective is "
                f"{args.objective}; give --objective remit or leave the control out"
            )

    @classmethod
    def check_tokenizer(cls, args: argparse.Namespace, tokenizer: Any) -> None:
        if args.remit_centering == "document":
            check_end_of_document(tokenizer, args.tokenizer_model)

    def __init__(self, args: argparse.Namespace, tokenizer: Any) -> None:
        super().__init__(args, tokenizer)
        self.epsilon: float | None = args.remit_epsilon
        self.centering: Centering = args.remit_centering
        self.permuted: bool = args.remit_control == "permute"
        self.seed: int = args.seed
        self.end_of_document: int | None = tokenizer.eod if self.centering == "document" else None

    def batch_columns(self, labels_BW: Tensor) -> dict[str, Tensor]:
        if self.end_of_document is None:
            return {}
        return {"document_ids": document_ids(labels_BW, self.end_of_document)}

    def compared_nll(self, batch: Batch, nll_BS: Tensor) -> Tensor:
        """What the reference's NLL is subtracted from to give delta (equation 3): the policy's NLL, no gradient."""
        return nll_BS.detach()

    def loss(self, batch: Batch, output: Tensor) -> LossResult:
        """``output`` is the policy's NLL [B, S]; the sum is equation 6's numerator, nats."""
        mask_BS, nll_BS, reference_nll_BS = batch["loss_mask"].float(), output.float(), batch["reference_nll"]
        group = context_parallel_group()
        weights = remit_weights(
            self.compared_nll(batch, nll_BS),
            reference_nll_BS,
            mask_BS,
            self.epsilon,
            self.centering,
            group,
            batch.get("document_ids"),
        )
        mask_N = mask_BS.reshape(-1)
        num_tokens = mask_N.sum().detach().to(torch.int)
        weight_BS = weights.weight_BS
        if self.permuted:
            weight_BS = permute_weights(weight_BS, mask_BS, batch["sample"], self.seed, group)
        # Flattened before the product, as in next-token prediction, so that weights equal to 1 sum to the same bits.
        weighted_nll_N = nll_BS.reshape(-1) * weight_BS.reshape(-1)
        loss = (weighted_nll_N * mask_N).sum()
        summed = {
            "lm loss": nll_BS.detach(),
            "reference nll": reference_nll_BS,
            "delta mean": weights.delta_BS,
            "delta negative": (weights.delta_BS < 0).float(),
            "weight mean": weight_BS,
            "weight square": weight_BS.square(),
            "clipped low": weights.clipped_low_BS,
            "clipped high": weights.clipped_high_BS,
        }
        report = {name: mean((value_BS.reshape(-1) * mask_N).sum(), num_tokens) for name, value_BS in summed.items()}
        report[f"{self.name} loss"] = mean(loss, num_tokens)
        clipped_BS = (weights.clipped_low_BS | weights.clipped_high_BS).float()
        keep_figures(batch, nll=nll_BS, weight=weight_BS, delta=weights.delta_BS, clipped=clipped_BS)
        return loss, num_tokens, report

    def finish_report(self, report: dict[str, Tensor]) -> None:
        finish_weight_std(report)


def check_end_of_document(tokenizer: Any, name: str | None) -> None:
    """Raise UserError if the labels of Megatron's dataset do not show where documents end.

    The dataset masks every label that is the padding token and writes token 0 in its place.
    """
    if tokenizer.eod is None:
        raise UserError(
            f"--remit-centering document: the tokenizer {name} has no end-of-document token (eos_token), so borders "
            "between documents are unknown; give it one, or use --remit-centering sequence"
        )
    if tokenizer.eod == tokenizer.pad:
        raise UserError(
            f"--remit-centering document: in the tokenizer {name} token {tokenizer.eod} both ends a document and pads; "
            "Megatron's dataset removes padding from the labels and the borders with it: give the tokenizer a padding "
            "token of its own, or use --remit-centering sequence"
        )


def _epsilon(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number in [0, 1] nor 'none'") from None
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} lies outside [0, 1]; the paper uses 0.2, 'none' turns clipping off")
    return value
