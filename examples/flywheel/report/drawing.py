"""A figure of the report: inline SVG by matplotlib that takes the page's colours."""

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_remit.analysis.figures import STYLE, svg_text


@contextmanager
def figure(
    name: str, width: float = 6.2, height: float = 3.7, axes: int = 1, sharey: bool = False
) -> Iterator[tuple[Figure, list[Axes], list[Markup]]]:
    """A figure to draw on; when the block ends, the list at the third place holds its SVG text."""
    svg: list[Markup] = []
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(width, height))
        grid = drawn.subplots(1, axes, sharey=sharey, squeeze=False)
        yield drawn, list(grid[0]), svg
        svg.append(svg_text(drawn, name))
