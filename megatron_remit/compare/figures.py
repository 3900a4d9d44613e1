"""The figures of a comparison, each as SVG for the page and as PNG and CSV beside it."""

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from megatron_remit.report.figures import MINUS, STYLE, svg_text

# Okabe and Ito's colours, dark enough for lines on white, each with a dash of its own for eyes that see no hue.
LINES = (
    ("#222222", "-"),
    ("#D55E00", "--"),
    ("#0072B2", "-."),
    ("#009E73", ":"),
    ("#CC79A7", (0, (5, 1, 1, 1, 1, 1))),
    ("#777777", (0, (1, 1))),
    ("#56B4E9", (0, (7, 2))),
    ("#E69F00", (0, (3, 1, 1, 1))),
)
PNG_DPI = 160


@dataclass
class Drawn:
    """A figure that was drawn."""

    name: str
    caption: str
    svg: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    """Name and content of its PNG and CSV."""


def line(number: int) -> dict[str, object]:
    """Colour and dash of the ``number``-th model or run."""
    colour, dash = LINES[number % len(LINES)]
    return {"color": colour, "linestyle": dash}


@contextmanager
def drawing(name: str, caption: str, width: float = 8.2, height: float = 4.2) -> Iterator[tuple[Figure, Drawn]]:
    """A figure to draw on; when the block ends, SVG and PNG are made."""
    drawn = Drawn(name, caption)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        yield figure, drawn
        drawn.svg = svg_text(figure, name)
        drawn.files[f"{name}.png"] = png(figure)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PNG_DPI)
    return buffer.getvalue()


def legend_above(figure: Figure, entries: int) -> None:
    """The first axes' legend over the axes, two entries a row: nothing that is drawn lies under it."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=2, fontsize=9.5)
    rows = (entries + 1) // 2
    figure.tight_layout(rect=(0, 0, 1, 1 - (0.22 * rows + 0.06) / figure.get_figheight()))


def table(rows: Iterable[Iterable[object]]) -> bytes:
    """Rows as CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def logp_figure(logp: dict[str, np.ndarray]) -> Drawn:
    """Distribution of token log-probabilities (figure 2): how sure each model is of the text as it stands."""
    low = min(np.quantile(values, 0.001) for values in logp.values())
    bins = np.linspace(np.floor(min(low, -1.0)), 0.0, 81)
    shares = {name: _shares(values, bins) for name, values in logp.items()}
    caption = (
        "Token log-probabilities of the same text under each model (paper, figure 2). Further right is surer. The "
        "leftmost bin also holds what lies below it."
    )
    with drawing("logprobs", caption) as (figure, drawn):
        ax = figure.subplots()
        for number, (name, share) in enumerate(shares.items()):
            label = f"{name}: mean {logp[name].mean():.3f}, median {np.median(logp[name]):.3f}".replace("-", MINUS)
            ax.stairs(share, bins, baseline=None, label=label, linewidth=1.8, **line(number))
        ax.set_yscale("log")
        ax.set_xlim(bins[0], 0.0)
        ax.set_xlabel("log p of the token that stands in the text, nats")
        ax.set_ylabel(f"% of tokens per {bins[1] - bins[0]:.2g} nats (log)")
        legend_above(figure, len(shares))
    drawn.files["logprobs.csv"] = _histogram_csv("log p", bins, shares)
    return drawn


def kl_figure(kl: dict[str, np.ndarray], teacher: str) -> Drawn:
    """Distribution of the per-token KL divergence to a teacher over the whole vocabulary (figure 6b)."""
    high = max(np.quantile(values, 0.9999) for values in kl.values())
    low = min(np.quantile(values, 0.001) for values in kl.values())
    # A divergence below 1e-6 nats is rounding.
    bins = np.geomspace(max(float(low), 1e-6), max(float(high), 1e-4), 71)
    shares = {name: _shares(values, bins) for name, values in kl.items()}
    caption = (
        f"KL divergence of each model from {teacher} at every token, over the whole vocabulary (paper, figure 6b). "
        "Further left is closer to the teacher. The outermost bins also hold what lies beyond them."
    )
    with drawing("kl", caption) as (figure, drawn):
        ax = figure.subplots()
        for number, (name, share) in enumerate(shares.items()):
            label = f"{name}: mean {kl[name].mean():.3g}, median {np.median(kl[name]):.3g}".replace("-", MINUS)
            ax.stairs(share, bins, baseline=None, label=label, linewidth=1.8, **line(number))
            ax.axvline(float(np.median(kl[name])), linewidth=0.9, **line(number))
        ax.set_xscale("log")
        ax.set_ylim(bottom=0)
        ax.set_xlabel(f"KL({teacher} || model) at a token, nats (log scale; thin lines: medians)")
        ax.set_ylabel(f"% of tokens per 1/{70 / np.log10(bins[-1] / bins[0]):.0f} decade")
        legend_above(figure, len(shares))
    drawn.files["kl.csv"] = _histogram_csv("kl", bins, shares)
    return drawn


def _shares(values: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Per cent of the values in each bin, those beyond the ends in the outermost."""
    counts, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins)
    return 100.0 * counts / len(values)


def _histogram_csv(what: str, bins: np.ndarray, shares: dict[str, np.ndarray]) -> bytes:
    head = [f"{what} from, nats", f"{what} to, nats", *(f"{name}, % of tokens" for name in shares)]
    rows = zip(bins[:-1], bins[1:], *shares.values(), strict=True)
    return table([head, *([f"{value:.6g}" for value in row] for row in rows)])
