"""The HTML page: what report.html shows beyond the figures, as rows and sentences."""

from pathlib import Path
from typing import Any

import numpy as np

from megatron_remit.analysis.figures import MINUS
from megatron_remit.analysis.page import environment, now
from report import figures
from report.effect import Effect
from report.facts import checks, kinds
from report.heldout import ScoredText, choose, shown
from report.load import RunFolder

MISSING = "\N{EN DASH}"


def page(run: RunFolder, texts: list[ScoredText], results: dict[str, Any], effect: Effect) -> str:
    """The whole report as one HTML document that loads nothing."""
    chosen, reach = choose(texts), run.epsilon or 1
    head, kinds_found = kinds(run.folder)
    timings = {stage: duration(seconds) for stage, seconds in run.timings.items()}
    content: dict[str, Any] = {
        "meta": _meta(run, results),
        "effect": effect,
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
    return environment(Path(__file__).parent).get_template("report.html").render(content)


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
    return (
        f"{now()} · {host['device']} ({host['processor']}, {host['cores']} cores) · commit {commit} · "
        f"clip ε = {run.epsilon}"
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


def _pairs(pairs: dict[str, Any]) -> list[tuple[str, str]]:
    def text(value: Any) -> str:
        if value is None:
            return MISSING
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
            return f"{value:,}"
        return str(value)

    return [(str(key), text(value)) for key, value in pairs.items()]
