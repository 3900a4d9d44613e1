"""What the numbers of a run allow one to say: the paragraphs at the head of the report."""

import math
from typing import NamedTuple

import numpy as np

from megatron_remit.analysis.figures import MINUS
from megatron_remit.analysis.scalars import smooth
from report.load import CURVE_ARMS, LOSS, RunFolder

# Differences below two standard errors are not distinguishable from zero.
DISTINCT = 2.0
# Nats. Equal models on equal tokens agree far better than this, in bf16 and in any parallel layout.
SAME_LOSS = 1e-3


class Paragraph(NamedTuple):
    """Text with bold words at its head, or an empty string."""

    lead: str
    text: str


def gain(run: RunFolder, arm: str, than: str, task: str) -> tuple[float, float]:
    """Accuracy of ``arm`` less that of ``than``, with its standard error, both in percentage points.

    The error treats the two samples of problems as independent. They are the same problems, so it is, as a rule, too
    wide; it says nothing about other training seeds.
    """
    first, second = run.accuracies[arm][task], run.accuracies[than][task]
    return 100 * (first.accuracy - second.accuracy), 100 * math.hypot(first.stderr, second.stderr)


def tokens_to_reach_ntp(run: RunFolder, arm: str) -> int | None:
    """Tokens after which the averaged loss of ``arm`` stays at or below the final one of NTP, None if it does not."""
    target = smooth(run.curves["ntp"].series[LOSS])[-1]
    # Written so that a loss that is not a number counts as not reached.
    above = np.flatnonzero(~(smooth(run.curves[arm].series[LOSS]) <= target))
    first = above[-1] + 1 if above.size else 0
    tokens = run.curves[arm].tokens
    return int(tokens[first]) if first < len(tokens) else None


def reading(run: RunFolder) -> list[Paragraph]:
    """What the arms differ by, and where the control stands."""
    return [Paragraph("Accuracy.", _accuracies(run)), Paragraph("Loss and cost.", _losses(run))]


def same_start(run: RunFolder) -> Paragraph:
    """Whether the arms began with the same model on the same batch: the unweighted losses of the first step show it."""
    first = [float(run.curves[arm].series[LOSS][0]) for arm in CURVE_ARMS]
    if any(run.curves[arm].first_step != 1 for arm in CURVE_ARMS):
        text = "The logs do not begin at step 1, so that the arms started alike could not be checked from their losses."
        return Paragraph("", text)
    apart = max(first) - min(first)
    if apart <= SAME_LOSS:
        return Paragraph(
            "",
            f"NTP and both ReMiT arms have the same unweighted loss at the first step ({first[0]:.4f} nats), as they "
            "must when they start from one base model and read the same tokens in the same order.",
        )
    return Paragraph(
        "The arms do not compare:",
        f"their unweighted losses at the first logged step differ by {apart:.4f} nats, so they did not start from the "
        "same model on the same tokens.",
    )


def other_tokens(run: RunFolder) -> tuple[int, int] | None:
    """Mid-training tokens of the references and of the arms where they differ; None where not, or where no log says."""
    mid, ntp = run.curves.get("mid"), int(run.curves["ntp"].tokens[-1])
    return None if mid is None or mid.tokens[-1] == ntp else (int(mid.tokens[-1]), ntp)


def _accuracies(run: RunFolder) -> str:
    parts = []
    for task in run.tasks:
        name = task.replace("_", "-")
        remit, remit_error = gain(run, "remit", "ntp", task)
        control = gain(run, "remit_nonrl", "ntp", task)[0]
        between, between_error = gain(run, "remit", "remit_nonrl", task)
        text = f"On {name} problems ReMiT ends {_apart(remit, remit_error, 'NTP on the same tokens')}"
        if control > 0 and remit > DISTINCT * remit_error:
            text += f"; with a reference that saw no RL the same objective gives {100 * control / remit:.0f} % of that"
        text += f". It ends {_apart(between, between_error, 'the run with the non-RL reference')}."
        parts.append(text)
    return " ".join(parts)


def _losses(run: RunFolder) -> str:
    total = int(run.curves["ntp"].tokens[-1])
    parts = []
    for arm, name in (("remit", "ReMiT"), ("remit_nonrl", "the non-RL control")):
        tokens = tokens_to_reach_ntp(run, arm)
        if tokens is None:
            parts.append(f"{name} does not reach it")
        else:
            parts.append(f"{name} reaches it after {tokens:,} ({100 * tokens / total:.0f} %)")
    share = run.curves["remit"].median("reference share")
    cost = f" Scoring the reference took {100 * share:.0f} % of a ReMiT step (median)." if share is not None else ""
    return (
        f"NTP's final unweighted loss took it {total:,} tokens: {', '.join(parts)}.{cost} "
        "The arms are compared at equal tokens, not at equal compute."
    )


def _apart(points: float, error: float, other: str) -> str:
    if abs(points) <= DISTINCT * error:
        sign = "+" if points >= 0 else MINUS
        return f"level with {other} ({sign}{abs(points):.1f} ± {error:.1f} points: not distinguishable from 0)"
    return f"{abs(points):.1f} ± {error:.1f} points {'above' if points > 0 else 'below'} {other}"
