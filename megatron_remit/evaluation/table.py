"""The table: methods below each other, tasks next to each other and the average at the end, as in the paper, whose own
scores stand below (arXiv 2602.03075, tables 1 to 4)."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_remit.evaluation.suites import Suite

MODELS = ("OLMo-1B", "SmolLM3-3B", "Youtu-LLM-2B")
_BY_ARCHITECTURE = {
    "Olmo2ForCausalLM": "OLMo-1B",
    "SmolLM3ForCausalLM": "SmolLM3-3B",
    "YoutuForCausalLM": "Youtu-LLM-2B",
}
AVERAGE = "Avg."
MISSING = "-"

# Model -> column -> result of Judge.column; a column that is not there has not been run.
Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Published:
    """A line of a table of the paper; ``scores`` in percent by column, with the average that the paper prints."""

    table: int
    suite: str
    model: str
    method: str
    scores: dict[str, float]


def published(suite: str | None = None, model: str | None = None) -> list[Published]:
    """The lines of ``suite`` about ``model``, in the paper's order; None: all."""
    lines = [
        Published(**line) for line in json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
    ]
    return [line for line in lines if suite in (None, line.suite) and model in (None, line.model)]


def model_of(folder: Path) -> str | None:
    """The model of the paper that a Hugging Face folder's architecture is, None if it is none of them."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (architecture,) = config.get("architectures") or [""]
    return _BY_ARCHITECTURE.get(architecture)


def average(suite: Suite, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float] | None:
    """Mean of the columns' scores with its standard error, in percent; None while a column is missing."""
    if any(column.name not in results for column in suite.columns):
        return None
    found = [results[column.name] for column in suite.columns]
    return {
        "score": sum(result["score"] for result in found) / len(found),
        "stderr": math.sqrt(sum(result["stderr"] ** 2 for result in found)) / len(found),
    }


def markdown(suite: Suite, scores: Scores, paper: Sequence[Published]) -> str:
    """The table in Markdown: the models, then the paper's lines. Scores and standard errors are in percent."""
    names = [column.name for column in suite.columns]
    lines = [["Method", *names, AVERAGE]]
    for model, results in scores.items():
        mean = average(suite, results)
        cells = [_cell(results.get(name)) for name in names]
        lines.append([model, *cells, _cell(mean)])
    for line in paper:
        values = [f"{line.scores[name]:.2f}" if name in line.scores else MISSING for name in (*names, AVERAGE)]
        lines.append([f"{line.method} (paper, {line.model}, table {line.table})", *values])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |\n"
        for line in (lines[0], rule, *lines[1:])
    )


def _cell(result: Mapping[str, Any] | None) -> str:
    return MISSING if result is None else f"{result['score']:.2f} ± {result['stderr']:.2f}"
