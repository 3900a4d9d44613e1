"""The figures of the results page, as PNG: every point is a run, every bar a 95 % interval."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from intervals import Interval, mean, slip
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_remit.analysis.figures import STYLE, png
from megatron_remit.analysis.scalars import smooth
from megatron_remit.artifacts import write_whole
from results.arms import LINES, STAGES, named
from results.cells import MAIN, Cells
from results.tables import BEFORE, NTP, arms_of, change, of_each_run

DPI = 100
EPSILON = 0.2


@contextmanager
def figure(path: Path, width: float, height: float, axes: int = 1) -> Iterator[list[Axes]]:
    """A row of axes; written to ``path`` when the block ends."""
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield list(drawn.subplots(1, axes, squeeze=False)[0])
        write_whole(path, png(drawn, dpi=DPI))


def _bar(ax: Axes, x: float, found: Interval, arm: str, label: str | None = None) -> None:
    style = named(arm)
    ends = [[max(0.0, found.mean - found.low)], [max(0.0, found.high - found.mean)]]
    ax.errorbar([x], [found.mean], ends, fmt=style.marker, color=style.colour, capsize=3, markersize=6, label=label)


def _rows(ax: Axes, rows: list[tuple[str, Interval, list[float]]], label: str) -> None:
    """One row per arm: its mean with the interval, and below it each run as a dot."""
    for row, (arm, found, each) in enumerate(rows):
        style = named(arm)
        ax.plot(each, [row + 0.22] * len(each), "o", color=style.colour, markersize=3.5, alpha=0.5, linewidth=0)
        ax.plot([found.low, found.high], [row, row], color=style.colour, linewidth=2.4, solid_capstyle="butt")
        ax.plot(found.mean, row, style.marker, color=style.colour, markersize=7)
    ax.set_yticks(range(len(rows)), [named(arm).name for arm, _, _ in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"{label}\n(bars: 95 % intervals; small dots: runs)")


def against_ntp(cells: Cells, path: Path, **wanted: Any) -> None:
    """The change of every arm against NTP with its interval, and each run's own change as a dot."""
    rows = []
    for arm in arms_of(cells, **wanted):
        found = change(cells, arm, NTP, **wanted) if arm != NTP else None
        if found:
            rows.append((arm, found, of_each_run(cells, arm, NTP, **wanted)))
    with figure(path, 8.2, 1.3 + 0.36 * len(rows)) as (ax,):
        ax.axvline(0, color="#222222", linewidth=1)
        _rows(ax, rows, "nats a solution against NTP, %")


def drawn_arms(cells: Cells, **wanted: Any) -> list[str]:
    """The arms whose lines are drawn: more than these cannot be told apart."""
    return [arm for arm in arms_of(cells, **wanted) if arm in LINES]


def curves(cells: Cells, path: Path, **wanted: Any) -> None:
    """Nats a solution against tokens and against seconds of training: means over runs (figures 1 and 16)."""
    with figure(path, 10.5, 4.4, 2) as axes:
        for ax, axis in zip(axes, ("tokens", "seconds"), strict=True):
            for arm in drawn_arms(cells, **wanted):
                _curve(ax, cells, arm, axis, wanted)
            ax.set_xlabel("mid-training tokens, thousands" if axis == "tokens" else "seconds of training")
        axes[0].set_ylabel("nats a solution, two and three steps")
        axes[1].legend(fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _curve(ax: Axes, cells: Cells, arm: str, axis: str, wanted: dict[str, Any]) -> None:
    found = list(cells.curves("nll", MAIN, arm=arm, **wanted).values())
    if not found or len({len(curve) for curve in found}) != 1:
        return
    x = cells.along(axis, arm=arm, **wanted)
    style = named(arm)
    y = np.mean([curve.mean(axis=1) for curve in found], axis=0)
    ax.plot(
        x / (1000 if axis == "tokens" else 1), y, style.dash, marker=style.marker, color=style.colour, markersize=4.5,
        linewidth=1.7, label=style.name,
    )  # fmt: skip


def stages(cells: Cells, path: Path) -> None:
    """The change against NTP after mid-training, after SFT and after GRPO (figures 5 to 7): levels differ more between
    bases than between the arms on one."""
    found = [stage for stage in STAGES if cells.where(study="lasting", stage=stage)]
    arms = [arm for arm in arms_of(cells, study="lasting", **BEFORE) if arm != NTP]
    with figure(path, 7.5, 4) as (ax,):
        for place, arm in enumerate(arms):
            label: str | None = named(arm).name
            for x, stage in enumerate(found):
                one = change(cells, arm, NTP, study="lasting", stage=stage, **BEFORE)
                if one:
                    _bar(ax, x + 0.12 * (place - (len(arms) - 1) / 2), one, arm, label)
                    label = None
        ax.axhline(0, color="#222222", linewidth=1)
        ax.set_xticks(range(len(found)), [STAGES[stage] for stage in found])
        ax.set_ylabel("nats a solution against NTP, %\n(bars: 95 % intervals)")
        ax.legend()


def logged(cells: Cells, path: Path, tag: str, label: str, **wanted: Any) -> None:
    """A logged value over training: mean over the runs of an arm, as a moving average over a tenth (figure 8)."""
    with figure(path, 8.2, 4) as (ax,):
        for arm in drawn_arms(cells, **wanted):
            logs = [cell["tensorboard"] for cell in cells.where(arm=arm, **wanted) if tag in cell["tensorboard"]]
            if not logs:
                continue
            count = min(len(log[tag]) for log in logs)
            y, style = smooth(np.mean([log[tag][:count] for log in logs], axis=0), 10), named(arm)
            ax.plot(np.array(logs[0]["tokens"][:count]) / 1000, y, style.dash, color=style.colour, label=style.name)
        ax.set(xlabel="mid-training tokens, thousands", ylabel=label)
        ax.legend(fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def kl(cells: Cells, path: Path, **wanted: Any) -> None:
    """KL to the reference on held-out text at the end of mid-training (figure 6b)."""
    rows = []
    for arm in arms_of(cells, **wanted):
        runs = cells.runs("kl_reference", arm=arm, **wanted)
        if runs:
            rows.append((arm, mean(runs), [float(value[0]) for value in runs.values()]))
    with figure(path, 8.2, 1.3 + 0.36 * len(rows)) as (ax,):
        _rows(ax, rows, "KL to the reference, nats/token")


def errors(cells: Cells, path: Path) -> None:
    """Effect against the share of errors, and the probabilities of the true result and of the slip with the closed
    form at the two bounds of the clip, where a cell says what share of the results is wrong."""
    shares = cells.values("errors", study="errors")
    with figure(path, 10.5, 4.2, 2) as (left, right):
        for place, arm in enumerate(arms_of(cells, study="errors")):
            first = True
            for share in shares:
                found = change(cells, arm, NTP, study="errors", errors=share) if arm != NTP else None
                if found:
                    _bar(left, 100 * share + place - 1, found, arm, named(arm).name if first else None)
                    first = False
            for measure, filled in (("p_slip", "full"), ("p_true", "none")):
                _probabilities(right, cells, arm, measure, filled)
        left.axhline(0, color="#222222", linewidth=1)
        left.set(xlabel="worked problems with an error, %", ylabel="nats a solution against NTP, %")
        left.legend(fontsize=8.5)
        for arm, wrong, ok in ((NTP, 1.0, 1.0), ("remit", 1 - EPSILON, 1 + EPSILON)):
            predicted = predictions(cells, wrong, ok)
            if predicted:
                label = f"closed form: weights {wrong:g} and {ok:g}"
                x = [100 * share for share, _ in predicted]
                right.plot(x, [p for _, p in predicted], named(arm).dash, color=named(arm).colour, label=label)
        right.set(xlabel="worked problems with an error, %", ylabel="probability (filled: slip, hollow: true)")
        right.set_yscale("log")
        right.legend(fontsize=8)


def _probabilities(ax: Axes, cells: Cells, arm: str, measure: str, filled: str) -> None:
    points = []
    for share in cells.values("errors", study="errors", arm=arm):
        runs = cells.runs(measure, study="errors", arm=arm, errors=share)
        if runs:
            points.append((100 * share, mean(runs).mean))
    if points:
        style = named(arm)
        label = style.name if filled == "full" else None
        x, y = zip(*points, strict=True)
        ax.plot(x, y, style.marker, color=style.colour, fillstyle=filled, linestyle="", label=label)  # type: ignore[arg-type]


def predictions(cells: Cells, wrong: float, right: float) -> list[tuple[float, float]]:
    """(share of problems with an error, closed-form probability of the slip) from few errors to the most that were run,
    where ``settings.wrong_results`` of a cell says what share of all results is wrong."""
    told = {cell["errors"]: cell["settings"].get("wrong_results") for cell in cells.where(study="errors")}
    known = sorted((share, results) for share, results in told.items() if results)
    if not known:
        return []
    shares, results = zip((0.0, 0.0), *known, strict=True)
    x = np.linspace(0, shares[-1], 61)[1:]  # at 0 it is 0, which has no logarithm
    return [(float(at), slip(float(np.interp(at, shares, results)), wrong, right)) for at in x]


def sizes(cells: Cells, path: Path, number: Callable[[str], float]) -> None:
    """Effect against size."""
    with figure(path, 7, 3.8) as (ax,):
        for place, arm in enumerate(arm for arm in arms_of(cells, study="size") if arm != NTP):
            first = True
            for size in cells.values("size", study="size"):
                found = change(cells, arm, NTP, study="size", size=size)
                if found:
                    _bar(ax, number(size) * (1 + 0.06 * place), found, arm, named(arm).name if first else None)
                    first = False
        ax.axhline(0, color="#222222", linewidth=1)
        ax.set(xscale="log", xlabel="parameters", ylabel="nats a solution against NTP, %")
        ax.legend()
