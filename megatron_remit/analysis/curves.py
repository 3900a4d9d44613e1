"""Training runs side by side: losses and gradient norms from TensorBoard logs, accuracy against tokens and time."""

import csv
import json
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from megatron_remit.analysis.figures import Drawn, drawing, legend_above, line, table
from megatron_remit.analysis.inputs import check_form
from megatron_remit.analysis.scalars import event_folders, read_scalars, smooth
from megatron_remit.errors import UserError

# What Megatron logs, then what Hugging Face's trainers do (SFT and DPO stages).
TAGS = {"loss": ("lm loss", "train/loss"), "gradient norm": ("grad-norm", "train/grad_norm")}
ACCURACY_COLUMNS = ("run", "tokens", "seconds", "accuracy")


@dataclass(frozen=True)
class RunLog:
    """One run's curves: for "loss" and "gradient norm" the steps [n] and the values [n]; a missing one is left out."""

    series: dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Evaluations:
    """One run's accuracies (shares in [0, 1]) with the tokens and seconds of training behind each, arrays [points]."""

    tokens: np.ndarray
    seconds: np.ndarray
    accuracy: np.ndarray


def read_run(name: str, folder: Path) -> RunLog:
    """The run's log, in ``folder`` or one below; several event files of one folder are one log (a resumed run).

    Raises UserError if there is no TensorBoard log with a loss, or more than one.
    """
    holders = event_folders(folder)
    if not holders:
        raise UserError(f"--run {name}={folder}: no TensorBoard event file below it; give a run's --tensorboard-dir")
    logs = {holder: read_scalars(holder) for holder in holders}
    # A trainer writes folders without a loss too (hyperparameters).
    losses = [holder for holder in holders if not logs[holder].keys().isdisjoint(TAGS["loss"])]
    if not losses:
        found = ", ".join(sorted(set().union(*logs.values()))) or "none"
        raise UserError(f"--run {name}={folder}: no scalar {' or '.join(map(repr, TAGS['loss']))}; found: {found}")
    if len(losses) > 1:
        raise UserError(
            f"--run {name}={folder}: {len(losses)} logs with a loss: {', '.join(map(str, losses))}; give each a --run, "
            "or if they are parts of one resumed run, put their event files into one folder"
        )
    series = {}
    for what, tags in TAGS.items():
        values = next((logs[losses[0]][tag] for tag in tags if tag in logs[losses[0]]), None)
        if values is not None:
            series[what] = (np.array(list(values)), np.array(list(values.values())))
    return RunLog(series)


def read_accuracies(values: Iterable[str]) -> dict[str, Evaluations]:
    """Runs by name, each value a ``FILE`` or a ``NAME=FILE.json``.

    A FILE is CSV with the columns run, tokens, seconds, accuracy, one row per evaluation. A FILE.json is one run's:
    ``{"points": [{"tokens", "seconds", "tasks": {TASK: {"accuracy"}}}]}``; its accuracy is the mean over the tasks.

    Raises:
        UserError: names the file, and the line of a CSV or the point of a JSON file.
    """
    runs: dict[str, Evaluations] = {}
    for value in values:
        points: dict[str, list[tuple[float, ...]]] = {}
        try:
            for place, name, *numbers in _json_points(value) if value.endswith(".json") else _csv_points(value):
                check_form(f"--accuracy {value}{place}", name)
                tokens, seconds, accuracy = map(_number, numbers)
                if not (0 <= tokens < math.inf and 0 <= seconds < math.inf and 0 <= accuracy <= 1):
                    raise UserError(
                        f"--accuracy {value}{place}: expected tokens and seconds of at least 0 and an accuracy in "
                        f"[0, 1], found {', '.join(map(str, numbers))}"
                    )
                points.setdefault(name, []).append((tokens, seconds, accuracy))
        except OSError as error:
            raise UserError(f"--accuracy {value}: cannot be read ({error})") from None
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, csv.Error) as error:
            what = 'JSON of the form {"points": [...]}' if value.endswith(".json") else "CSV"
            raise UserError(f"--accuracy {value}: expected {what} in UTF-8, found {error!r}") from None
        if not points:
            raise UserError(f"--accuracy {value}: no evaluation in it")
        for name, rows in points.items():
            if name in runs:
                raise UserError(f"--accuracy {value}: the run {name!r} is given twice; each needs its own name")
            runs[name] = Evaluations(*np.array(sorted(rows)).T)
    return runs


def _csv_points(value: str) -> Iterator[tuple]:
    """Place, run, tokens, seconds and accuracy of each row."""
    with Path(value).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in ACCURACY_COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"--accuracy {value}: no column {missing[0]!r}; expected {', '.join(ACCURACY_COLUMNS)}")
        for row in reader:
            yield f":{reader.line_num}", *(row[column] or "" for column in ACCURACY_COLUMNS)


def _number(value: Any) -> float:
    """NaN for what is no number."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _json_points(value: str) -> Iterator[tuple]:
    """Place, run, tokens, seconds and mean accuracy of each point."""
    name, _, file = value.partition("=")
    if not (name and file):
        raise UserError(f"--accuracy {value}: expected NAME=FILE.json")
    for number, point in enumerate(json.loads(Path(file).read_text(encoding="utf-8"))["points"], start=1):
        accuracy = statistics.mean(task["accuracy"] for task in point["tasks"].values())
        yield f", point {number}", name, point["tokens"], point["seconds"], accuracy


def curves_figure(runs: dict[str, RunLog]) -> Drawn:
    """Loss and gradient norm against steps (figures 8 and 13)."""
    kinds = [what for what in TAGS if any(what in run.series for run in runs.values())]
    caption = (
        "Runs side by side (paper, figures 8 and 13): thin lines are steps, thick ones a moving average over 1/30 of "
        "them."
    )
    with drawing("runs", caption, 5.4 * len(kinds), 4.0) as (figure, drawn):
        axes = figure.subplots(1, len(kinds), squeeze=False)[0]
        for ax, what in zip(axes, kinds, strict=True):
            for number, (name, run) in enumerate(runs.items()):
                if what in run.series:
                    steps, values = run.series[what]
                    style = line(number)
                    ax.plot(steps, values, color=style["color"], alpha=0.25, linewidth=0.7)
                    ax.plot(steps, smooth(values), label=name, linewidth=1.9, **style)
            ax.set_xlabel("step")
            _scale(ax, what, [run.series[what][1] for run in runs.values() if what in run.series])
        legend_above(figure, len(runs))
    rows: list[list[object]] = [["run", "what", "step", "value"]]
    for name, run in runs.items():
        for what, (steps, values) in run.series.items():
            rows += [[name, what, step, f"{value:.6g}"] for step, value in zip(steps, values, strict=True)]
    drawn.files["runs.csv"] = table(rows)
    return drawn


def accuracy_figure(runs: dict[str, Evaluations]) -> Drawn:
    """Accuracy against training tokens and against training time (figures 1 and 16)."""
    caption = "Accuracy of the runs at equal tokens and at equal time (paper, figures 1 and 16)."
    with drawing("accuracy", caption, 10.8, 4.0) as (figure, drawn):
        axes = figure.subplots(1, 2, sharey=True)
        for number, (name, points) in enumerate(runs.items()):
            for ax, x in zip(axes, (points.tokens / 1e6, points.seconds / 60), strict=True):
                order = np.argsort(x)
                ax.plot(
                    x[order],
                    100 * points.accuracy[order],
                    marker="o",
                    markersize=5,
                    label=name,
                    linewidth=1.7,
                    **line(number),
                )
        _finish(axes[0], "training tokens, millions")
        _finish(axes[1], "training time, minutes")
        axes[0].set_ylabel("accuracy, %")
        legend_above(figure, len(runs))
    rows: list[list[object]] = [list(ACCURACY_COLUMNS)]
    for name, points in runs.items():
        columns = zip(points.tokens, points.seconds, points.accuracy, strict=True)
        rows += [[name, *(f"{value:.10g}" for value in row)] for row in columns]
    drawn.files["accuracy.csv"] = table(rows)
    return drawn


def _scale(ax: Axes, what: str, values: list[np.ndarray]) -> None:
    """Logarithmic for gradient norms that span more than a decade: below that its ticks have no readable labels."""
    known = np.concatenate(values)
    known = known[np.isfinite(known) & (known > 0)]
    log = what == "gradient norm" and known.size > 0 and known.max() > 10 * known.min()
    if log:
        ax.set_yscale("log")
    ax.set_ylabel({"loss": "loss, nats/token", "gradient norm": f"gradient norm{' (log)' if log else ''}"}[what])


def _finish(ax: Axes, label: str) -> None:
    ax.set_xlabel(label)
    ax.set_xlim(left=0)
    ax.margins(y=0.12)
