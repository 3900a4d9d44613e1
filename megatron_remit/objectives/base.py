"""What the training program asks of an objective, and what each objective may leave as it is.

An objective is one file: its flags, the check of them, the batch columns that it needs, its loss and its figures. It is
made once per run from the parsed arguments (``registry.current_objective``), so a loss reads no global state.
docs/new-objective.md goes through a new one.

Shape suffixes: M microbatches of a step, B sequences of a microbatch, S sequence positions on this rank, W positions of
the whole sequence, N = B * S tokens.
"""

import abc
import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from megatron.core import mpu
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import Module

from megatron_remit.data.batch import Batch
from megatron_remit.nll import Output, Vocabulary, nll_output
from megatron_remit.objectives.math.selection import Choice, choose_in_global_batch

LossResult = tuple[Tensor, Tensor, dict[str, Tensor]]
"""``(sum of the loss over this rank's tokens, number of tokens int32, report)``.

Megatron divides by the token count of the global batch (``--calculate-per-token-loss``), so the divisor of equation 6
is the number of tokens and never the sum of the weights. A report value is :func:`mean`'s pair.
"""


@dataclass(frozen=True)
class Step:
    """A training step whose microbatches are read and scored, before the policy trains on them."""

    batches: list[list[Batch]]
    """The microbatches of each model chunk of this rank; those of the last chunk of the last stage are scored."""
    reference: list[Module]
    """The reference's model chunks on this rank; with ``--reference-offload`` their weights are away
    (:mod:`megatron_remit.reference.offload`)."""
    policy_nll: Callable[[], list[Tensor]]
    """Runs the policy forward over the step, in ``eval`` mode and without gradients: the NLL [B, S] of each microbatch
    on the last pipeline stage, elsewhere nothing. All ranks must call it, or none."""


class Objective(abc.ABC):
    """One training objective. Only :meth:`loss` has to be written."""

    name: ClassVar[str]
    """What ``--objective`` calls it, and error messages."""
    summary: ClassVar[str]
    """A few words for ``--help``."""
    needs_reference: ClassVar[bool] = False
    """Whether the reference scores each step first."""
    needs_base: ClassVar[bool] = False
    """Whether a second frozen model, the reference's base, gives the batch column ``base_nll``."""
    reads_step: ClassVar[bool] = False
    """Whether the step is read first although there is no reference, so that :meth:`look_ahead` is called."""
    reference_column: ClassVar[str] = "reference_nll"
    """The batch column that receives what the reference's pass gave. A score store can serve ``reference_nll``."""

    @classmethod
    def looks_ahead(cls) -> bool:
        """Whether a step's microbatches are all read before the policy trains on the first."""
        return cls.needs_reference or cls.reads_step

    @classmethod
    def add_arguments(cls, group: Any) -> None:
        """Add this objective's flags to the ReMiT argument group; the names begin with the objective's."""

    @classmethod
    def check_arguments(cls, args: argparse.Namespace, chosen: bool) -> None:
        """Refuse flags that cannot work together. ``chosen``: whether the run has this objective.

        Raises:
            UserError: names the flag, what was found and what to do.
        """

    @classmethod
    def check_tokenizer(cls, args: argparse.Namespace, tokenizer: Any) -> None:
        """Refuse a tokenizer that this objective cannot work with (Megatron's tokenizer object). Raises UserError."""

    def __init__(self, args: argparse.Namespace, tokenizer: Any) -> None:
        """Take from the run's arguments, and from Megatron's tokenizer, what the loss will need."""
        self.vocabulary = Vocabulary.of(args)
        self.reference_vocabulary = Vocabulary.of_reference(args)

    def batch_columns(self, labels_BW: Tensor) -> dict[str, Tensor]:
        """More columns [B, W] of a microbatch, by name, on ranks that compute a loss.

        ``labels_BW`` are whole sequences; context parallelism cuts the columns together with them.
        """
        return {}

    def reference_output(self) -> Output:
        """What the reference computes from its final hidden states, batch first; stored with each microbatch."""
        return nll_output(self.reference_vocabulary)

    def look_ahead(self, step: Step) -> None:
        """Called once per step on every rank, after the reference and before the policy: may add batch columns."""

    def policy_output(self, batch: Batch) -> Output:
        """What the policy computes from its final hidden states for this microbatch, with gradients."""
        return nll_output(self.vocabulary)

    @abc.abstractmethod
    def loss(self, batch: Batch, output: Tensor) -> LossResult:
        """The loss of one microbatch from :meth:`policy_output`'s result."""

    def finish_report(self, report: dict[str, Tensor]) -> None:
        """Turn a step's reported means, reduced over microbatches and ranks, into what is logged. Works in place."""


def context_parallel_group() -> ProcessGroup | None:
    """The ranks that hold the other parts of this rank's sequences; None where sequences are whole."""
    group = mpu.get_context_parallel_group(check_initialized=False)
    return group if group is not None and group.size() > 1 else None


def mean(total: Tensor, num_tokens: Tensor) -> Tensor:
    """A report value: the pair (sum, tokens) that Megatron's ``train_step`` adds up over ranks before it divides."""
    return torch.stack([total.detach().float(), num_tokens.float()])


def select_in_step(scored: Sequence[Batch], scores: Sequence[Tensor], choice: Choice) -> None:
    """Set the column ``selected`` of a step's microbatches: what ``choice`` takes of the tokens of the global batch.

    ``scores`` holds each microbatch's [B, S]. For the ranks that compute a loss.
    """
    mask_MBS = torch.stack([batch["loss_mask"].float() for batch in scored])
    selected_MBS = choose_in_global_batch(
        choice, torch.stack(tuple(scores)), mask_MBS, mpu.get_data_parallel_group(), context_parallel_group()
    )
    for batch, selected_BS in zip(scored, selected_MBS, strict=True):
        batch["selected"] = selected_BS


def selected_loss(
    name: str, nll_BS: Tensor, mask_BS: Tensor, selected_BS: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The loss of an objective that trains on some tokens: the sum of their NLLs, their number, and a report with the
    loss of all unmasked tokens, that of the selected ones (``<name> loss``) and their share."""
    nll_N, mask_N, selected_N = nll_BS.reshape(-1), mask_BS.reshape(-1), selected_BS.reshape(-1).float()
    num_tokens, num_selected = mask_N.sum().to(torch.int), selected_N.sum().to(torch.int)
    # In the order of next-token prediction: with all tokens selected the same bits.
    loss = (nll_N * selected_N).sum()
    report = {
        "lm loss": mean((nll_N.detach() * mask_N).sum(), num_tokens),
        f"{name} loss": mean(loss, num_selected),
        "kept share": mean(selected_N.sum(), num_tokens),
    }
    return loss, num_selected, report


def keep_figures(batch: Batch, **figures_BS: Tensor) -> None:
    """Leave values per token [B, S] in a microbatch, to be watched by source of the blend and in histograms.

    Args:
        figures_BS: ``nll`` (the policy's), ``weight``, ``delta``, ``clipped`` and ``kept`` (0 or 1), as far as the
            objective has them.
    """
    batch["figures"] = {name: value_BS.detach() for name, value_BS in figures_BS.items()}


def masked_mean(value_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """The report value of a figure per token: its mean over the tokens whose mask is 1."""
    mask_N = mask_BS.reshape(-1).float()
    return mean((value_BS.reshape(-1) * mask_N).sum(), mask_N.sum().to(torch.int))


def finish_weight_std(report: dict[str, Tensor]) -> None:
    """Replace ``weight square`` by what cannot be averaged over ranks, from the first two moments: ``weight std``, and
    ``effective share``, (sum w)^2 / sum w^2 as a share of the tokens, 1 where all weigh the same."""
    square = report.pop("weight square", None)
    if square is not None:
        mean_square = report["weight mean"] ** 2
        report["weight std"] = (square - mean_square).clamp(min=0).sqrt()
        report["effective share"] = mean_square / square


def number_in(low: float, high: float, low_counts: bool, message: str) -> Callable[[str], float]:
    """An argparse type: a number from ``low`` (included if ``low_counts``) up to ``high``, infinity excluded.

    ``message`` follows the refused text.
    """

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (low <= value if low_counts else low < value) or not value <= high or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} {message}")
        return value

    return parse
