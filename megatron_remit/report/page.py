"""The HTML page: tables, notes and figures put into page.html."""

from datetime import datetime
from html import escape
from importlib import resources
from string import Template
from typing import Any

import numpy as np

from megatron_remit.report import figures
from megatron_remit.report.heatmap import choose, heatmap, legend, scale
from megatron_remit.report.load import ARM_NAMES, CURVE_ARMS, Run
from megatron_remit.report.reading import reading, same_start
from megatron_remit.report.score import ScoredText

MISSING = "&ndash;"


def page(run: Run, texts: list[ScoredText], results: dict[str, Any]) -> str:
    """The whole report as one HTML document that loads nothing."""
    files = resources.files("megatron_remit.report")
    shown = choose(texts)
    full = scale(texts)
    threshold = figures.clip_threshold(run.epsilon) if run.epsilon and run.epsilon < 1 else 0.5
    return Template((files / "page.html").read_text(encoding="utf-8")).substitute(
        style=(files / "page.css").read_text(encoding="utf-8"),
        meta=_meta(run, results),
        reading=reading(run),
        accuracy_table=accuracy_table(run, results),
        accuracy_figure=figures.accuracy_figure(run),
        same_start=same_start(run),
        loss_figure=figures.loss_figure(run.curves),
        difference_figure=figures.difference_figure(run.curves),
        weight_figure=figures.weight_figure(run.curves, run.epsilon),
        clipped_figure=figures.clipped_figure(run.curves),
        gap_figure=figures.gap_figure(run.curves),
        gradient_figure=figures.gradient_figure(run.curves),
        delta_figure=figures.delta_figure(texts, run.epsilon),
        delta_note=_delta_note(results["delta"], run.epsilon),
        heatmap=heatmap(shown, full, threshold),
        heatmap_note=f"The texts come first in the file ({_per_task(shown)}); none was picked by its result.",
        legend=legend(full, threshold),
        timing_table=_pairs({stage: duration(seconds) for stage, seconds in run.timings.items()}
                            | {"all stages": duration(sum(run.timings.values()))}),
        settings_table=_pairs(flatten(run.settings)),
        versions_table=_pairs(results["versions"] | results["machine"]),
    )  # fmt: skip


def accuracy_table(run: Run, results: dict[str, Any]) -> str:
    """One row an arm, one column a task, and what its mid-training took."""
    sizes = {task: sorted({scores[task].n for scores in run.scores.values()}) for task in run.tasks}
    head = "".join(
        f'<th class="n task-head">{escape(task.replace("_", "-"))}<br>'
        f"<small>%, n = {' / '.join(map(str, sizes[task]))}</small></th>"
        for task in run.tasks
    )
    columns = ("mid-training tokens", "seconds", "tokens/s", "reference share of a step", "evaluation seconds")
    head += "".join(f'<th class="n">{column}</th>' for column in columns)
    rows = []
    for arm in run.scores:
        content = results["arms"][arm]
        training = content["mid_training"]
        cells = [
            f"{100 * score.accuracy:.1f} <small>± {100 * score.stderr:.1f}</small>"
            for score in (run.scores[arm][task] for task in run.tasks)
        ]
        cells += [
            _number(training["tokens"]),
            _number(training["seconds"]),
            _number(training.get("tokens_per_second_median")),
            _percent(training.get("reference_share_median")),
            _number(content["evaluation_seconds"]),
        ]
        dot = f'<span class="dot" style="background:{figures.COLOURS[arm]}"></span>'
        row = f"<td>{dot}{escape(ARM_NAMES[arm])}</td>" + "".join(f'<td class="n">{cell}</td>' for cell in cells)
        rows.append(f'<tr id="arm-{arm}">{row}</tr>')
    return f'<table class="full"><thead><tr><th>model</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


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


def _meta(run: Run, results: dict[str, Any]) -> str:
    host = results["machine"]
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    commit = results["versions"]["git commit"] or "unknown"
    tokens = ", ".join(f"{ARM_NAMES[arm]} {run.curves[arm].tokens[-1]:,}" for arm in CURVE_ARMS)
    return escape(
        f"{when} · {host['device']} ({host['processor']}, {host['cores']} cores) · commit {commit} · "
        f"mid-training tokens: {tokens} · clip ε = {run.epsilon}"
    )


def _delta_note(delta: dict[str, Any], epsilon: float | None) -> str:
    text = (
        f"{delta['tokens']:,} tokens of {delta['texts']:,} held-out texts; mean δ {_nats(delta['mean'])}, median "
        f"{_nats(delta['quantiles']['0.5'])}, 99th percentile {_nats(delta['quantiles']['0.99'])}. "
    )
    if epsilon is not None:
        text += (
            f"The dashed lines are where the clip sets in for ε = {epsilon:g}, at ± ln((1 + ε)/(1 &minus; ε)) of the "
            "centered δ. "
        )
    return text + (
        "Each text is centered by itself here; in training a sequence holds several texts. The outermost bins also "
        "hold what lies beyond them."
    )


def _per_task(texts: list[ScoredText]) -> str:
    names, counts = np.unique([text.task for text in texts], return_counts=True)
    return ", ".join(f"{count} of {escape(name)}" for name, count in zip(names, counts, strict=True))


def _nats(value: float) -> str:
    return f"{'+' if value >= 0 else '&minus;'}{abs(value):.3f} nats"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.0f} %"


def _pairs(pairs: dict[str, Any]) -> str:
    def shown(value: Any) -> str:
        if value is None:
            return MISSING
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
            return f"{value:,}"
        return escape(str(value))

    rows = "".join(f"<tr><td>{escape(str(key))}</td><td>{shown(value)}</td></tr>" for key, value in pairs.items())
    return f'<table class="full"><tbody>{rows}</tbody></table>'
