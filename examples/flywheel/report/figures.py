"""The figures of the report: inline SVG by matplotlib, in Okabe and Ito's colours (safe for colour-blind eyes)."""

import math

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from megatron_remit.analysis.figures import MINUS
from megatron_remit.analysis.scalars import smooth
from report.drawing import figure
from report.heldout import ScoredText
from report.load import ARM_NAMES, CURVE_ARMS, LOSS, Curves, RunFolder

COLOURS = {
    "base": "#777777",
    "mid": "#CC79A7",
    "rl_reference": "#009E73",
    "ntp": "#222222",
    "remit": "#D55E00",
    "remit_nonrl": "#0072B2",
}
# A second cue next to colour, for print and for eyes that see no hue.
DASHES = {"ntp": "--", "remit": "-", "remit_nonrl": "-."}
MARKERS = {"base": "o", "mid": "D", "rl_reference": "^", "ntp": "s", "remit": "o", "remit_nonrl": "v"}


def clip_threshold(epsilon: float) -> float:
    """The centered delta, nats, beyond which a weight is clipped: 2 sigmoid(x) = 1 +- eps at +- ln((1+eps)/(1-eps))."""
    return math.log((1 + epsilon) / (1 - epsilon)) if epsilon < 1 else math.inf


def accuracy_figure(run: RunFolder) -> Markup:
    """Accuracy of every arm, one panel per task, with 95 % Wilson intervals."""
    arms = list(run.accuracies)
    with figure("accuracy", 9.6, 0.9 + 0.36 * len(arms), len(run.tasks), sharey=True) as (whole, axes, svg):
        for ax, task in zip(axes, run.tasks, strict=True):
            for row, arm in enumerate(arms):
                found = run.accuracies[arm][task]
                low, high = found.wilson()
                ax.plot([100 * low, 100 * high], [row, row], color=COLOURS[arm], linewidth=2.2, solid_capstyle="butt")
                ax.plot(100 * found.accuracy, row, MARKERS[arm], color=COLOURS[arm], markersize=7)
                left = found.accuracy > 0.8
                edge = 100 * (low if left else high)
                ax.annotate(
                    f"{100 * found.accuracy:.1f} %",
                    (edge, row),
                    xytext=(-7 if left else 7, 0),
                    textcoords="offset points",
                    va="center",
                    ha="right" if left else "left",
                    fontsize=9.5,
                )
            ax.set(xlim=(-2, 102), ylim=(len(arms) - 0.5, -0.5), xlabel="greedy accuracy, % of problems")
            ax.set_title(task.replace("_", "-") + " problems", fontsize=11, loc="left")
            ax.set_yticks(range(len(arms)), [ARM_NAMES[arm] for arm in arms])
            ax.grid(axis="y", visible=False)
        whole.tight_layout()
    return svg[0]


def loss_figure(curves: dict[str, Curves]) -> Markup:
    """The unweighted NTP loss of the three arms against tokens: thin every step, thick the moving average."""
    with figure("loss") as (_, (ax,), svg):
        for arm in CURVE_ARMS:
            _curve(ax, curves[arm], LOSS, arm)
        late = np.concatenate([curves[arm].series[LOSS][len(curves[arm].tokens) // 20 :] for arm in CURVE_ARMS])
        low, high = np.nanmin(late), np.nanmax(late)
        ax.set_ylim(low - 0.04 * (high - low), high + 0.08 * (high - low))
        _finish(ax, "unweighted NTP loss, nats/token")
    return svg[0]


def difference_figure(curves: dict[str, Curves]) -> Markup:
    """Loss of each ReMiT arm less that of NTP at the same step, that is on the same tokens; below zero is better."""
    with figure("loss difference") as (_, (ax,), svg):
        ntp = curves["ntp"]
        for arm in CURVE_ARMS[1:]:
            tokens, here, there = np.intersect1d(curves[arm].tokens, ntp.tokens, return_indices=True)
            gap = curves[arm].series[LOSS][here] - ntp.series[LOSS][there]
            ax.plot(tokens, gap, color=COLOURS[arm], alpha=0.22, linewidth=0.8)
            ax.plot(tokens, smooth(gap), DASHES[arm], color=COLOURS[arm], linewidth=2, label=ARM_NAMES[arm])
        ax.axhline(0, color="#222222", linewidth=1)
        _finish(ax, f"loss {MINUS} NTP loss, nats/token")
    return svg[0]


def weight_figure(curves: dict[str, Curves], epsilon: float | None) -> Markup:
    """Mean weight with a band of one standard deviation over the tokens of a step."""
    with figure("weights") as (_, (ax,), svg):
        for arm in CURVE_ARMS[1:]:
            mean, std = (smooth(curves[arm].series[tag]) for tag in ("weight mean", "weight std"))
            ax.fill_between(curves[arm].tokens, mean - std, mean + std, color=COLOURS[arm], alpha=0.13, linewidth=0)
            for edge in (mean - std, mean + std):
                ax.plot(curves[arm].tokens, edge, DASHES[arm], color=COLOURS[arm], linewidth=0.8)
            ax.plot(curves[arm].tokens, mean, DASHES[arm], color=COLOURS[arm], linewidth=2, label=ARM_NAMES[arm])
        for bound in (1 - epsilon, 1 + epsilon) if epsilon is not None else ():
            ax.axhline(bound, color="#666666", linewidth=1, linestyle=":")
            ax.annotate(
                f"clip at {bound:g}", (1, bound), xycoords=("axes fraction", "data"), xytext=(-2, 4), ha="right",
                textcoords="offset points", fontsize=9, color="#444444",
            )  # fmt: skip
        if epsilon is not None:
            ax.set_ylim(1 - 1.35 * max(epsilon, 0.01), 1 + 1.5 * max(epsilon, 0.01))
        _finish(ax, "weight, mean ± one std over tokens")
    return svg[0]


def clipped_figure(curves: dict[str, Curves]) -> Markup:
    """Shares of tokens whose weight met the upper and the lower bound."""
    with figure("clipped shares", axes=2, sharey=True) as (_, axes, svg):
        for ax, tag, title in zip(axes, ("clipped high", "clipped low"), ("at 1 + ε", f"at 1 {MINUS} ε"), strict=True):
            for arm in CURVE_ARMS[1:]:
                ax.plot(
                    curves[arm].tokens, 100 * smooth(curves[arm].series[tag]), DASHES[arm], color=COLOURS[arm],
                    linewidth=2, label=ARM_NAMES[arm],
                )  # fmt: skip
            _finish(ax, "clipped tokens, %" if tag == "clipped high" else "", legend=False)
            ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(3))
            ax.set_title(title, fontsize=10.5, loc="left")
        axes[0].set_ylim(bottom=0)  # the axes share it, so only once both are drawn
        axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", ncols=2, fontsize=9.5)
        axes[0].figure.tight_layout(rect=(0, 0, 1, 0.93))
    return svg[0]


def gradient_figure(curves: dict[str, Curves]) -> Markup:
    """Gradient norm before clipping, logarithmic."""
    with figure("gradient norm") as (_, (ax,), svg):
        for arm in CURVE_ARMS:
            _curve(ax, curves[arm], "grad-norm", arm)
        ax.set_yscale("log")
        # Often less than a decade is shown: ticks at 1, 2, 5 have labels then, where whole decades would leave none.
        ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        _finish(ax, "gradient norm (log scale)")
    return svg[0]


def gap_figure(curves: dict[str, Curves]) -> Markup:
    """Mean delta of each ReMiT arm over training: how far the policy is from its reference."""
    with figure("mean delta") as (_, (ax,), svg):
        for arm in CURVE_ARMS[1:]:
            _curve(ax, curves[arm], "delta mean", arm)
        ax.axhline(0, color="#222222", linewidth=1)
        _finish(ax, "mean δ over the tokens of a step, nats")
    return svg[0]


def delta_figure(texts: list[ScoredText], epsilon: float | None) -> Markup:
    """Histogram of delta (outline) and of the centered delta (filled), with the thresholds of the clip."""
    delta = np.concatenate([text.margin for text in texts])
    centered = np.concatenate([text.centered for text in texts])
    reach = max(1.0, math.ceil(2 * np.quantile(np.abs(np.concatenate([delta, centered])), 0.995)) / 2)
    bins = np.linspace(-reach, reach, 81)
    each = np.full(len(delta), 100 / len(delta))
    with figure("delta", 9.6, 3.7) as (whole, (ax,), svg):
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
        ax.legend(loc="upper left", fontsize=9.5)
        whole.tight_layout()
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


def _curve(ax: Axes, curves: Curves, tag: str, arm: str) -> None:
    values = curves.series[tag]
    ax.plot(curves.tokens, values, color=COLOURS[arm], alpha=0.2, linewidth=0.7)
    ax.plot(curves.tokens, smooth(values), DASHES[arm], color=COLOURS[arm], linewidth=2, label=ARM_NAMES[arm])


def _finish(ax: Axes, ylabel: str, legend: bool = True) -> None:
    ax.set_xlabel("mid-training tokens")
    ax.set_ylabel(ylabel)
    ax.xaxis.set_major_formatter(lambda value, _: _count(value))
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
    ax.set_xlim(left=0)
    if legend:
        ax.legend(fontsize=9.5)
        ax.figure.tight_layout()


def _count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
