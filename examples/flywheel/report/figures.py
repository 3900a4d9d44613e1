"""The histogram of delta on held-out text: inline SVG by matplotlib."""

import math

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from megatron_remit.analysis.figures import MINUS
from report.drawing import figure
from report.heldout import ScoredText


def clip_threshold(epsilon: float) -> float:
    """The centered delta, nats, beyond which a weight is clipped: 2 sigmoid(x) = 1 +- eps at +- ln((1+eps)/(1-eps))."""
    return math.log((1 + epsilon) / (1 - epsilon)) if epsilon < 1 else math.inf


def delta_figure(texts: list[ScoredText], epsilon: float | None) -> Markup:
    """Histogram of delta (outline) and of the centered delta (filled), with the thresholds of the clip."""
    delta = np.concatenate([text.margin for text in texts])
    centered = np.concatenate([text.centered for text in texts])
    reach = max(1.0, math.ceil(2 * np.quantile(np.abs(np.concatenate([delta, centered])), 0.995)) / 2)
    bins = np.linspace(-reach, reach, 81)
    each = np.full(len(delta), 100 / len(delta))
    with figure("delta", 9.6, 3.7) as (ax, svg):
        ax.hist(
            np.clip(centered, -reach, reach), bins, weights=each, color="#9ecae1", label=f"centered: δ {MINUS} mean(δ)"
        )
        ax.hist(
            np.clip(delta, -reach, reach), bins, weights=each, histtype="step", color="#222222", linewidth=1.3,
            label="δ as it is",
        )  # fmt: skip
        ax.set_yscale("log")
        if epsilon is not None and 0 < clip_threshold(epsilon) < reach:
            _mark_clip(ax, centered, clip_threshold(epsilon))
        ax.set_xlim(-reach, reach)
        ax.set_xlabel(f"δ = nll base {MINUS} nll RL, nats    (right: the RL reference predicts the token better)")
        ax.set_ylabel(f"% of tokens per {2 * reach / 80:.3g} nats (log)")
        # Over the axes: within them it would lie under the words at the thresholds.
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9.5)
    return svg[0]


def _mark_clip(ax: Axes, centered: np.ndarray, threshold: float) -> None:
    low, high = 100 * np.mean(centered < -threshold), 100 * np.mean(centered > threshold)
    ax.set_ylim(top=ax.get_ylim()[1] * 12)
    sides = ((-threshold, f"{low:.1f} % clipped low", "right"), (threshold, f"{high:.1f} % clipped high", "left"))
    for x, text, side in sides:
        ax.axvline(x, color="#D55E00", linewidth=1.6, linestyle="--")
        ax.annotate(
            f"{text}\nx = {x:+.3f}".replace("-", MINUS), (x, 0.97), xycoords=("data", "axes fraction"), ha=side,
            va="top", xytext=(6 if side == "left" else -6, 0), textcoords="offset points", fontsize=9.5,
        )  # fmt: skip
