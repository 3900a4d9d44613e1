"""The HTML page: what report.html shows beyond the figures, as rows and sentences."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megatron_remit.analysis.figures import MINUS, PAGE_COLOURS
from megatron_remit.analysis.page import environment, now
from report import figures
from report.effect import Effect
from report.facts import checks, kinds
from report.heldout import ScoredText, choose, shown
from report.load import ARM_NAMES, CURVE_ARMS, RunFolder
from report.reading import other_tokens, reading, same_start

MISSING = "\N{EN DASH}"


class ArmRow(NamedTuple):
    """A row of the accuracy table; the figures are texts."""

    arm: str
    name: str
    colour: str
    accuracies: list[tuple[str, str]]
    """Per task: accuracy and its standard error, %."""
    numbers: list[str]


def page(run: RunFolder, texts: list[ScoredText], results: dict[str, Any], effect: Effect | None) -> str:
    """The whole report as one HTML document that loads nothing."""
    chosen, reach = choose(texts), run.epsilon or 1
    head, kinds_found = kinds(run.folder)
    timings = {stage: duration(seconds) for stage, seconds in run.timings.items()}
    content: dict[str, Any] = {
        "meta": _meta(run, results),
        "effect": effect,
        "complete": run.complete,
        "checks": checks(run.folder),
        "kinds_head": head,
        "kinds": kinds_found,
        "scale": (f"weight {1 - reach:g}", "two-sided", f"{1 + reach:g}"),
        "texts": [shown(text, run.epsilon) for text in chosen],
        "per_task": _per_task(chosen),
        "delta_figure": figures.delta_figure(texts, run.epsilon),
        "delta_note": _delta_note(results["delta"], run.epsilon),
        "timings": _pairs(timings | {"all stages": duration(sum(run.timings.values()))}),
        "settings": _pairs(flatten(run.settings)),
        "versions": _pairs(results["versions"] | results["machine"]),
    }
    if run.complete:
        content |= _one_run(run, results)
    return environment(Path(__file__).parent).get_template("report.html").render(content)


def _one_run(run: RunFolder, results: dict[str, Any]) -> dict[str, Any]:
    """What the page says of one run of each arm: accuracies by lm-eval and the training curves."""
    return {
        "reading": reading(run),
        "other_tokens": other_tokens(run),
        "tasks": _tasks(run),
        "arms": [_arm(run, arm, results["arms"][arm]) for arm in run.accuracies],
        "same_start": same_start(run),
        "accuracy_figure": figures.accuracy_figure(run),
        "loss_figure": figures.loss_figure(run.curves),
        "difference_figure": figures.difference_figure(run.curves),
        "weight_figure": figures.weight_figure(run.curves, run.epsilon),
        "clipped_figure": figures.clipped_figure(run.curves),
        "gap_figure": figures.gap_figure(run.curves),
        "gradient_figure": figures.gradient_figure(run.curves),
    }


def _tasks(run: RunFolder) -> list[tuple[str, str]]:
    """Name of each task, and the number of problems in it, of which the arms may have seen different ones."""
    sizes = {task: sorted({accuracies[task].n for accuracies in run.accuracies.values()}) for task in run.tasks}
    return [(task.replace("_", "-"), " / ".join(map(str, found))) for task, found in sizes.items()]


def _arm(run: RunFolder, arm: str, content: dict[str, Any]) -> ArmRow:
    training = content["mid_training"]
    found = [run.accuracies[arm][task] for task in run.tasks]
    numbers = [
        _number(training["tokens"]),
        _number(training["seconds"]),
        _number(training.get("tokens_per_second_median")),
        _percent(training.get("reference_share_median")),
        _number(content["evaluation_seconds"]),
    ]
    accuracies = [(f"{100 * one.accuracy:.1f}", f"{100 * one.stderr:.1f}") for one in found]
    colour = figures.COLOURS[arm]
    return ArmRow(arm, ARM_NAMES[arm], PAGE_COLOURS.get(colour, colour), accuracies, numbers)


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: {"a": {"b": 1}} gives {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, dict):
            flat |= flatten(entry, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = entry
    return flat


def duration(seconds: float) -> str:
    """Seconds below two minutes, else minutes and seconds."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def _meta(run: RunFolder, results: dict[str, Any]) -> str:
    host = results["machine"]
    commit = results["versions"]["git commit"] or "unknown"
    logs = [arm for arm in CURVE_ARMS if arm in run.curves]
    tokens = ", ".join(f"{ARM_NAMES[arm]} {run.curves[arm].tokens[-1]:,}" for arm in logs)
    return (
        f"{now()} · {host['device']} ({host['processor']}, {host['cores']} cores) · commit {commit} · "
        f"{f'mid-training tokens: {tokens} · ' if logs else ''}clip ε = {run.epsilon}"
    )


def _delta_note(delta: dict[str, Any], epsilon: float | None) -> str:
    text = (
        f"{delta['tokens']:,} tokens of {delta['texts']:,} held-out texts; mean δ {_nats(delta['mean'])}, median "
        f"{_nats(delta['quantiles']['0.5'])}, 99th percentile {_nats(delta['quantiles']['0.99'])}. "
    )
    if epsilon is not None:
        text += (
            f"The dashed lines are where the clip sets in for ε = {epsilon:g}, at ± ln((1 + ε)/(1 {MINUS} ε)) of the "
            "centered δ. "
        )
    return text + (
        "Each text is centered by itself here; in training a sequence holds several texts. The outermost bins also "
        "hold what lies beyond them."
    )


def _per_task(texts: list[ScoredText]) -> str:
    names, counts = np.unique([text.task for text in texts], return_counts=True)
    return ", ".join(f"{count} of {name}" for name, count in zip(names, counts, strict=True))


def _nats(value: float) -> str:
    return f"{'+' if value >= 0 else MINUS}{abs(value):.3f} nats"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.0f} %"


def _pairs(pairs: dict[str, Any]) -> list[tuple[str, str]]:
    def text(value: Any) -> str:
        if value is None:
            return MISSING
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
            return f"{value:,}"
        return str(value)

    return [(str(key), text(value)) for key, value in pairs.items()]
