"""The paper's own scores (arXiv 2602.03075, tables 1 to 4), for the lines below a table."""

import json
from dataclasses import dataclass
from pathlib import Path

MODELS = ("OLMo-1B", "SmolLM3-3B", "Youtu-LLM-2B")
_BY_ARCHITECTURE = {
    "Olmo2ForCausalLM": "OLMo-1B",
    "SmolLM3ForCausalLM": "SmolLM3-3B",
    "YoutuForCausalLM": "Youtu-LLM-2B",
}


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
