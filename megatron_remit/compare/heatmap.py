"""Texts whose tokens are coloured by log p_A - log p_B, as HTML, PNG and CSV (paper, figures 3, 10 and 11)."""

from dataclasses import dataclass
from functools import cached_property
from html import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from megatron_remit.compare.figures import png, table
from megatron_remit.compare.inputs import Texts
from megatron_remit.report.figures import MINUS, STYLE

SHOWN_TEXTS = 3
SHOWN_TOKENS = 400
PNG_TOKENS = 220
# Full colours for A better and B better. Dark text keeps a contrast of more than 5:1 on both, and red and blue differ
# in every common kind of colour blindness.
RED = (236, 92, 72)
BLUE = (92, 148, 226)
# Figure 11 leaves tokens white whose log-probabilities differ by less than this, nats.
WHITE_BELOW = 0.1
COLUMNS = 104


@dataclass(frozen=True)
class Heatmap:
    """Two models on the same texts."""

    a: str
    b: str
    two_sided: bool
    """False: white to red where A is surer (figures 3 and 10). True: also blue where B is (figure 11)."""
    logp_a_N: np.ndarray
    logp_b_N: np.ndarray

    @cached_property
    def margin_N(self) -> np.ndarray:
        """log p_A - log p_B, nats."""
        return self.logp_a_N - self.logp_b_N

    @property
    def name(self) -> str:
        """The stem of its files."""
        return f"{'contrast' if self.two_sided else 'heatmap'}-{self.a}-{self.b}"

    def full(self) -> float:
        """The margin of full colour, nats: 98th percentile of the margins that are coloured, up to the next half."""
        size_N = np.abs(self.margin_N) if self.two_sided else self.margin_N
        coloured = size_N[size_N > (WHITE_BELOW if self.two_sided else 0.0)]
        return max(0.5, float(np.ceil(2 * np.quantile(coloured, 0.98)) / 2)) if coloured.size else 0.5

    def colour(self, margin: float, full: float) -> str:
        """The background of a token, ``#rrggbb``."""
        if (abs(margin) < WHITE_BELOW) if self.two_sided else (margin <= 0):
            return "#ffffff"
        share = min(abs(margin) / full, 1.0)
        end = RED if margin > 0 else BLUE
        return "#" + "".join(f"{round(255 + share * (value - 255)):02x}" for value in end)


def html(heatmap: Heatmap, texts: Texts) -> str:
    """The first texts, every token with its log-probabilities as a tip."""
    full, blocks = heatmap.full(), []
    for number in range(min(SHOWN_TEXTS, len(texts))):
        start, end = texts.starts[number], texts.starts[number + 1]
        stop = min(end, start + SHOWN_TOKENS)
        more = "" if stop == end else f" <small>(the first {SHOWN_TOKENS} of {end - start:,} tokens)</small>"
        tokens = "".join(_token(heatmap, texts.pieces[i], i, full) for i in range(start, stop))
        blocks.append(f'<div class="text"><span class="task">text {number + 1}{more}</span><p>{tokens}</p></div>')
    return "\n".join(blocks)


def legend(heatmap: Heatmap) -> str:
    """The colour scale with its ends."""
    full = heatmap.full()
    low = -full if heatmap.two_sided else 0.0
    stops = ", ".join(heatmap.colour(low + (full - low) * i / 16, full) for i in range(17))
    left = f"{MINUS}{full:g} nats: {escape(heatmap.b)} surer" if heatmap.two_sided else "≤ 0"
    bar = f'<span class="bar" style="background:linear-gradient(to right, {stops})"></span>'
    return f'<span class="scale">{left}{bar}+{full:g} nats: {escape(heatmap.a)} surer</span>'


def draw(heatmap: Heatmap, texts: Texts) -> bytes:
    """The first texts as a PNG file, up to ``PNG_TOKENS`` tokens of them."""
    full = heatmap.full()
    shown_texts = min(SHOWN_TEXTS, len(texts))
    stop = min(texts.starts[shown_texts], PNG_TOKENS)
    cells = _layout(texts.pieces[:stop], texts.starts[1:shown_texts])
    rows = 1 + max(row for _, row, _, _ in cells)
    width, height = 0.0935 * COLUMNS + 0.4, 0.235 * (rows + 2.2) + 0.2
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        ax = figure.add_axes((0.2 / width, 0, 1 - 0.4 / width, 1), xlim=(0, COLUMNS), ylim=(rows + 0.3, -2.2))
        ax.axis("off")
        _draw_scale(ax, heatmap, full)
        style = {"family": "DejaVu Sans Mono", "fontsize": 11, "va": "center", "parse_math": False, "color": "#111111"}
        for token, row, column, shown in cells:
            colour = heatmap.colour(float(heatmap.margin_N[token]), full)
            if colour != "#ffffff":
                ax.add_patch(Rectangle((column, row), len(shown), 0.94, facecolor=colour, linewidth=0))
            ax.text(column, row + 0.5, shown, **style)
        return png(figure)


def _draw_scale(ax: Axes, heatmap: Heatmap, full: float) -> None:
    low = -full if heatmap.two_sided else 0.0
    for i in range(40):
        margin = low + (full - low) * (i + 0.5) / 40
        ax.add_patch(Rectangle((34 + i * 0.6, -1.9), 0.62, 0.9, facecolor=heatmap.colour(margin, full), linewidth=0))
    ax.add_patch(Rectangle((34, -1.9), 24, 0.9, facecolor="none", edgecolor="#8a8a8a", linewidth=0.8))
    left = f"{MINUS}{full:g}: {heatmap.b} surer" if heatmap.two_sided else f"0 or {heatmap.b} surer"
    ax.text(33.2, -1.42, left, ha="right", va="center", fontsize=10, parse_math=False)
    ax.text(58.8, -1.42, f"+{full:g} nats: {heatmap.a} surer", ha="left", va="center", fontsize=10, parse_math=False)


def _layout(pieces: list[str], borders: list[int]) -> list[tuple[int, int, int, str]]:
    """(token, row, column, characters) of each stretch of a token on one row of ``COLUMNS`` characters.

    An empty row stands before each token of ``borders``, where another text begins.
    """
    cells: list[tuple[int, int, int, str]] = []
    row = column = 0
    for token, piece in enumerate(pieces):
        if token in borders:
            row, column = row + 1 + (column > 0), 0
        for part in piece.replace("\t", "    ").splitlines(keepends=True) or [""]:
            shown = part.rstrip("\r\n") + ("↵" if part[-1:] in ("\n", "\r") else "")
            while shown:
                if column == COLUMNS:
                    row, column = row + 1, 0
                taken, shown = shown[: COLUMNS - column], shown[COLUMNS - column :]
                cells.append((token, row, column, taken))
                column += len(taken)
            if part[-1:] in ("\n", "\r"):
                row, column = row + 1, 0
    return cells or [(0, 0, 0, "·")]


def _token(heatmap: Heatmap, piece: str, place: int, full: float) -> str:
    margin = float(heatmap.margin_N[place])
    wide = max(len(heatmap.a), len(heatmap.b), 4)
    tip = (
        f"log p {heatmap.a:<{wide}}  {heatmap.logp_a_N[place]:8.3f}\n"
        f"log p {heatmap.b:<{wide}}  {heatmap.logp_b_N[place]:8.3f}\n"
        f"margin{'':<{wide}}   {margin:+8.3f} nats"
    )
    shown = escape(piece).replace("\n", "↵\n") or "·"
    # No title attribute: the browser's own tooltip would come up over this one.
    tip = escape(tip, quote=True).replace("\n", "&#10;")
    return f'<span class="t" style="background:{heatmap.colour(margin, full)}" data-tip="{tip}">{shown}</span>'


def csv(heatmap: Heatmap, texts: Texts) -> bytes:
    """The texts that the page shows, a row a token."""
    rows: list[list[object]] = [
        ["text", "token", "characters", f"log p {heatmap.a}, nats", f"log p {heatmap.b}, nats", "margin, nats"]
    ]
    for number in range(min(SHOWN_TEXTS, len(texts))):
        start = texts.starts[number]
        for i in range(start, min(texts.starts[number + 1], start + SHOWN_TOKENS)):
            values = (heatmap.logp_a_N[i], heatmap.logp_b_N[i], heatmap.margin_N[i])
            rows.append([number + 1, i - start, texts.pieces[i], *(f"{value:.4f}" for value in values)])
    return table(rows)
