"""Tokens coloured by log p_A - log p_B, as HTML, PNG and CSV (paper, figures 3, 10, 11), and mean margins of tokens.

Shape suffix: N tokens of all texts.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from megatron_remit.analysis.figures import MINUS, STYLE, png, table
from megatron_remit.analysis.inputs import Texts

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


class Token(NamedTuple):
    """One token as the page shows it."""

    shown: str
    margin: float
    share: float
    """Its colour: -1 full blue, 0 none, 1 full red. The style sheet has the colours, on light and on dark."""
    tip: str
    """What is shown when a reader points at it or touches it."""
    underlined: bool = False


class ShownText(NamedTuple):
    """One text as the page shows it."""

    label: str
    cut: str
    """What is not shown of it, or empty."""
    tokens: list[Token]


def colour_share(margin: float, full: float, two_sided: bool = False) -> float:
    """How much colour a token gets, up to 1 (red) at a margin of ``full`` nats; two-sided also down to -1 (blue)."""
    if (abs(margin) < WHITE_BELOW) if two_sided else (margin <= 0):
        return 0.0
    return max(-1.0, min(margin / full, 1.0))


def colour(margin: float, full: float, two_sided: bool = False) -> str:
    """The background of a token on white, ``#rrggbb``."""
    share = colour_share(margin, full, two_sided)
    end = RED if share > 0 else BLUE
    return "#" + "".join(f"{round(255 + abs(share) * (value - 255)):02x}" for value in end)


def full_margin(margin_N: np.ndarray, two_sided: bool = False) -> float:
    """The margin of full colour, nats: 98th percentile of the margins that are coloured, up to the next half."""
    size_N = np.abs(margin_N) if two_sided else margin_N
    coloured = size_N[size_N > (WHITE_BELOW if two_sided else 0.0)]
    return max(0.5, float(np.ceil(2 * np.quantile(coloured, 0.98)) / 2)) if coloured.size else 0.5


def shown_piece(piece: str) -> str:
    """The characters of a token, with line ends and the empty token made visible."""
    return piece.replace("\n", "↵\n") or "·"


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
        return self.stem(self.a, self.b, self.two_sided)

    @staticmethod
    def stem(a: str, b: str, two_sided: bool) -> str:
        """The stem of the files of a pair's heatmap."""
        return f"{'contrast' if two_sided else 'heatmap'}-{a}-{b}"

    def full(self) -> float:
        """The margin of full colour, nats."""
        return full_margin(self.margin_N, self.two_sided)

    def colour(self, margin: float, full: float) -> str:
        """The background of a token, ``#rrggbb``."""
        return colour(margin, full, self.two_sided)

    def scale(self) -> tuple[str, str, str]:
        """The legend of the colours: the words at its left, its class in the style sheet, the words at its right."""
        full = self.full()
        left = f"{MINUS}{full:g} nats: {self.b} surer" if self.two_sided else "≤ 0"
        return left, "two-sided" if self.two_sided else "one-sided", f"+{full:g} nats: {self.a} surer"

    def shown(self, texts: Texts) -> list[ShownText]:
        """The first texts, every token with its log-probabilities as a tip."""
        full, found = self.full(), []
        for number in range(min(SHOWN_TEXTS, len(texts))):
            start, end = texts.starts[number], texts.starts[number + 1]
            stop = min(end, start + SHOWN_TOKENS)
            cut = "" if stop == end else f"(the first {SHOWN_TOKENS} of {end - start:,} tokens)"
            tokens = [self._token(texts.pieces[i], i, full) for i in range(start, stop)]
            found.append(ShownText(f"text {number + 1}", cut, tokens))
        return found

    def _token(self, piece: str, place: int, full: float) -> Token:
        margin = float(self.margin_N[place])
        wide = max(len(self.a), len(self.b), 4)
        tip = (
            f"log p {self.a:<{wide}}  {self.logp_a_N[place]:8.3f}\n"
            f"log p {self.b:<{wide}}  {self.logp_b_N[place]:8.3f}\n"
            f"margin{'':<{wide}}   {margin:+8.3f} nats"
        )
        return Token(shown_piece(piece), margin, colour_share(margin, full, self.two_sided), tip)


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
        style: dict[str, Any] = {"family": "DejaVu Sans Mono", "fontsize": 11, "color": "#111111"}
        for token, row, column, shown in cells:
            fill = heatmap.colour(float(heatmap.margin_N[token]), full)
            if fill != "#ffffff":
                ax.add_patch(Rectangle((column, row), len(shown), 0.94, facecolor=fill, linewidth=0))
            ax.text(column, row + 0.5, shown, va="center", parse_math=False, **style)
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


def csv(heatmap: Heatmap, texts: Texts) -> bytes:
    """The texts that the page shows, one row per token."""
    rows: list[list[object]] = [
        ["text", "token", "characters", f"log p {heatmap.a}, nats", f"log p {heatmap.b}, nats", "margin, nats"]
    ]
    for number in range(min(SHOWN_TEXTS, len(texts))):
        start = texts.starts[number]
        for i in range(start, min(texts.starts[number + 1], start + SHOWN_TOKENS)):
            values = (heatmap.logp_a_N[i], heatmap.logp_b_N[i], heatmap.margin_N[i])
            rows.append([number + 1, i - start, texts.pieces[i], *(f"{value:.4f}" for value in values)])
    return table(rows)


@dataclass(frozen=True)
class TokenMargin:
    """One token's log p_A - log p_B over all its places."""

    token: str
    count: int
    mean: float
    stderr: float
    """Standard error of the mean, nats, as if the places were independent, which in running text they are not quite."""


def token_margins(margin_N: np.ndarray, pieces: list[str], least: int = 10) -> list[TokenMargin]:
    """Tokens that occur at least ``least`` times, the largest mean margin first.

    Spelling counts, the space before it does not: " So" and "So" are one. Of equal means the more frequent comes first.
    """
    # Not np.unique: an array of strings gives each of them the room of the longest.
    ids: dict[str, int] = {}
    group_N = np.array([ids.setdefault(piece.strip(" ") or piece, len(ids)) for piece in pieces])
    count = np.bincount(group_N)
    mean = np.bincount(group_N, margin_N) / count
    spread = np.bincount(group_N, (margin_N - mean[group_N]) ** 2)
    stderr = np.sqrt(spread / np.maximum(count - 1, 1) / count)
    found = [
        TokenMargin(name, int(count[i]), float(mean[i]), float(stderr[i]))
        for name, i in ids.items()
        if count[i] >= least
    ]
    return sorted(found, key=lambda one: (-one.mean, -one.count, one.token))
