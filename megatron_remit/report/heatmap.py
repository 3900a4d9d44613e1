"""Held-out texts as HTML, every token coloured by log p_RL - log p_base (paper, figures 3 and 10)."""

import math
from html import escape

import numpy as np

from megatron_remit.report.score import ScoredText

# The colour of the strongest margin. Dark text keeps a contrast of more than 5:1 on it.
RED = (236, 92, 72)
MINUS = "\N{MINUS SIGN}"


def choose(texts: list[ScoredText], per_task: int = 4) -> list[ScoredText]:
    """The first ``per_task`` texts of every task, in the order of the file: nothing is picked by its result."""
    tasks = dict.fromkeys(text.task for text in texts)
    return [text for task in tasks for text in [t for t in texts if t.task == task][:per_task]]


def scale(texts: list[ScoredText]) -> float:
    """The margin, nats, at which the colour is full: 98th percentile of the positive margins, to the next half nat."""
    margins = np.concatenate([text.margin for text in texts])
    positive = margins[margins > 0]
    return max(0.5, math.ceil(2 * float(np.quantile(positive, 0.98))) / 2) if positive.size else 0.5


def heatmap(texts: list[ScoredText], full: float, threshold: float) -> str:
    """One paragraph a text. ``full`` is the margin of full colour; below ``-threshold`` a token is underlined."""
    blocks = []
    for text in texts:
        tokens = "".join(_token(text, i, full, threshold) for i in range(len(text.pieces)))
        blocks.append(f'<div class="text"><span class="task">{escape(text.task)}</span><p>{tokens}</p></div>')
    return "\n".join(blocks)


def legend(full: float, threshold: float) -> str:
    """The colour scale with its end values, and the underline that marks margins below ``-threshold`` nats."""
    stops = ", ".join(colour(full * i / 4, full) for i in range(5))
    return (
        f'<span class="scale">≤ 0<span class="bar" style="background:linear-gradient(to right, {stops})"></span>'
        f'≥ {full:g} nats</span><span class="scale"><span class="worse">token</span> base better by more than '
        f"{threshold:.2f} nats</span>"
    )


def colour(margin: float, full: float) -> str:
    """White for a margin of 0 or less, red from ``full`` on, linear between."""
    share = min(max(margin / full, 0.0), 1.0)
    return "#" + "".join(f"{round(255 + share * (end - 255)):02x}" for end in RED)


def _token(text: ScoredText, i: int, full: float, threshold: float) -> str:
    margin = float(text.margin[i])
    tip = (
        f"log p RL    {text.logp_rl[i]:8.3f}\n"
        f"log p base  {text.logp_base[i]:8.3f}\n"
        f"margin      {margin:+8.3f} nats\n"
        f"weight      {text.weight[i]:8.3f}"
    ).replace("-", MINUS)
    # No title attribute: the browser's own tooltip would come up over this one.
    tip = escape(tip, quote=True).replace("\n", "&#10;")
    shown = escape(text.pieces[i]).replace("\n", "↵\n") or "·"
    worse = " worse" if margin < -threshold else ""
    style = f"background:{colour(margin, full)}" if margin > 0 else ""
    return f'<span class="t{worse}" style="{style}" data-margin="{margin:.4f}" data-tip="{tip}">{shown}</span>'
