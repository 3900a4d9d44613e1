"""What the numbers of a run allow one to say: the paragraph at the head of the report."""

import math
from html import escape

import numpy as np

from megatron_remit.report.figures import smooth
from megatron_remit.report.load import LOSS, Run

MINUS = "&minus;"
# Differences below two standard errors are not told apart from zero.
DISTINCT = 2.0


def gain(run: Run, arm: str, than: str, task: str) -> tuple[float, float]:
    """Accuracy of ``arm`` less that of ``than``, with its standard error, both in percentage points.

    The error treats the two samples of problems as independent. They are the same problems, so it is, as a rule, too
    wide; it says nothing about other training seeds.
    """
    first, second = run.scores[arm][task], run.scores[than][task]
    return 100 * (first.accuracy - second.accuracy), 100 * math.hypot(first.stderr, second.stderr)


def tokens_to_reach_ntp(run: Run, arm: str) -> int | None:
    """Tokens after which the averaged loss of ``arm`` stays at or below the final one of NTP, None if it does not."""
    target = smooth(run.curves["ntp"].series[LOSS])[-1]
    above = np.flatnonzero(smooth(run.curves[arm].series[LOSS]) > target)
    first = above[-1] + 1 if above.size else 0
    tokens = run.curves[arm].tokens
    return int(tokens[first]) if first < len(tokens) else None


def reading(run: Run) -> str:
    """HTML paragraphs: what the arms differ by, where the control stands, and what this run cannot show."""
    return "\n".join(f"<p>{text}</p>" for text in (_accuracies(run), _losses(run), _limits(run)))


def _accuracies(run: Run) -> str:
    parts = []
    for task in run.tasks:
        name = escape(task.replace("_", "-"))
        remit, remit_error = gain(run, "remit", "ntp", task)
        control, _ = gain(run, "remit_nonrl", "ntp", task)
        between, between_error = gain(run, "remit", "remit_nonrl", task)
        text = (
            f"On {name} problems ReMiT ends {_signed(remit)} ± {remit_error:.1f} points from NTP on the same tokens"
            f"{_told(remit, remit_error)}; with a reference that saw no RL the same weights give {_signed(control)}"
        )
        if remit > DISTINCT * remit_error and control > 0:
            text += f", which is {100 * control / remit:.0f} % of that gain"
        text += (
            f". RL reference against non-RL reference: {_signed(between)} ± {between_error:.1f} points"
            f"{_told(between, between_error)}."
        )
        parts.append(text)
    return "<b>Accuracy.</b> " + " ".join(parts)


def _losses(run: Run) -> str:
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
        f"<b>Loss and cost.</b> NTP's final unweighted loss took it {total:,} tokens: {', '.join(parts)}.{cost} "
        "The arms are compared at equal tokens, not at equal compute."
    )


def _limits(run: Run) -> str:
    mid = run.curves.get("mid")
    ntp = int(run.curves["ntp"].tokens[-1])
    more = ""
    if mid is not None and mid.tokens[-1] != ntp:
        more = f"; the references were mid-trained on {int(mid.tokens[-1]):,} tokens, the arms on {ntp:,}"
    return (
        "<b>What this can and cannot show.</b> It shows that every stage works, from corpus to verified answers. It is "
        "<b>one seed</b>: the ± above covers which problems were drawn, not other training runs. At this size learning "
        "is a sharp phase transition; the weights make it come earlier, so the gap depends on where training is "
        "stopped, and in the prototype of this flywheel a third more NTP tokens caught up, and NTP alone varied by 14 "
        "points over three seeds. Most of the effect came there from any better model of the same data rather than "
        f"from RL{more}. Nothing here says what a 1B model would gain: that takes several seeds, whole curves, and the "
        "controls (non-RL reference, permuted weights, NTP at equal compute)."
    )


def _signed(points: float) -> str:
    return f"{'+' if points >= 0 else MINUS}{abs(points):.1f}"


def _told(points: float, error: float) -> str:
    return "" if abs(points) > DISTINCT * error else " (not told apart from 0)"
