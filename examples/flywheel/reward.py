"""The verifiable reward: 1 when the number after ``####`` is the problem's answer and the text ends there."""

import re
from typing import Any

ENDING = re.compile(r"#### (\d+)\s*(?:<eos>)?\s*\Z")


def answer_of(completion: str) -> str | None:
    """The stated answer, or None if the completion does not end with one."""
    found = ENDING.search(completion)
    return found[1] if found else None


def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """TRL's reward signature: one number in {0, 1} for each completion."""
    return [float(answer_of(text) == right) for text, right in zip(completions, answer, strict=True)]
