"""How every figure looks, as inline SVG, PNG and CSV; and the distributions over tokens (paper, figures 2 and 6b)."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

MINUS = "\N{MINUS SIGN}"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#8a8a8a",
    "axes.grid": True,
    "axes.labelcolor": "#222222",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.fonttype": "path",  # glyphs as outlines: the figure looks the same whatever fonts the reader has
    "text.color": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}
# Okabe and Ito's colours, dark enough for lines on white, each with its own dash for eyes that see no hue.
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
# Colours of STYLE -> those of the page (page.css).
PAGE_COLOURS = {
    "#222222": "currentColor",
    "#444444": "var(--tick)",
    "#8a8a8a": "var(--axis)",
    "#e6e6e6": "var(--grid)",
    "#ffffff": "none",
}


@dataclass
class Drawn:
    """A figure that was drawn."""

    name: str
    caption: str
    svg: Markup | str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    """Name and content of its PNG and CSV."""


def line(number: int) -> dict[str, Any]:
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


def svg_text(figure: Figure, name: str) -> Markup:
    """The figure as an <svg> element of the page's width: no XML header, no metadata (it is full of links)."""
    buffer = io.StringIO()
    # A fixed salt makes the generated ids, and so the page, the same in every run.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # matplotlib names groups and glyphs alike in every figure; on one page an id must be there once.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name.replace(' ', '-')}-", text)
    # Text and axes in the page's own colours, so that a dark page has light ones; no white ground.
    for colour, name_of_it in PAGE_COLOURS.items():
        text = text.replace(f": {colour}", f": {name_of_it}")
    head, body = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    # Safe to mark: matplotlib drew it, with every word as outlines.
    return Markup(f'{head} fill="currentColor" role="img" aria-label="{name}">{body}')


def png(figure: Figure, dpi: int = PNG_DPI) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def legend_above(figure: Figure, entries: int) -> None:
    """The first axes' legend over the axes, two entries per row: nothing that is drawn lies under it."""
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
