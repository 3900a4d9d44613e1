"""A figure of the report: inline SVG by matplotlib that takes the page's colours."""

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_remit.analysis.figures import STYLE, svg_text


@contextmanager
def figure(name: str, width: float, height: float) -> Iterator[tuple[Axes, list[Markup]]]:
    """Axes to draw on; when the block ends, the list at the second place holds the figure's SVG text."""
    svg: list[Markup] = []
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(width, height))
        yield drawn.subplots(), svg
        drawn.tight_layout()
        svg.append(svg_text(drawn, name))
