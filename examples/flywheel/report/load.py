"""Reads a run folder: timings, settings and held-out texts. Its cells are read by ``results/cells.py``.

docs/report.md describes the folder. Every missing or malformed file is a UserError that names it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_remit.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """What a run folder holds."""

    folder: Path
    timings: dict[str, float]
    settings: dict[str, Any]
    heldout: list[dict[str, Any]]

    @property
    def epsilon(self) -> float | None:
        """The clip width of the ReMiT weight, None for no clipping."""
        return self.settings["epsilon"]

    @property
    def sequence_length(self) -> int:
        """The length of a training sequence, tokens."""
        return self.settings["sequence_length"]


def load_run(folder: Path) -> RunFolder:
    """Read ``folder``. Raises UserError naming the first file that is missing or not as described in docs/report.md."""
    if not folder.is_dir():
        raise UserError(f"--run-dir {folder}: no such folder; run examples/flywheel_tiny.sh first")
    settings = _settings(folder / "settings.json")
    for arm in ("base", "rl_reference"):
        if not (folder / "hf" / arm / "config.json").is_file():
            raise UserError(f"{folder / 'hf' / arm}: no Hugging Face model there (config.json is missing); export it")
    timings = _timings(folder / "timings.json")
    heldout = _heldout(folder / "data" / "heldout.jsonl")
    return RunFolder(folder, timings, settings, heldout)


def _json(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: missing; run the stage of examples/flywheel_tiny.sh that writes it")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); remove it and run its stage again") from None


def _settings(path: Path) -> dict[str, Any]:
    settings = _json(path)
    length = settings.get("sequence_length") if isinstance(settings, dict) else None
    if not isinstance(length, int) or length < 1:
        raise UserError(f'{path}: "sequence_length" is {length!r}; expected the training sequence length in tokens')
    epsilon = settings.setdefault("epsilon", 0.2)
    if epsilon is not None and not (isinstance(epsilon, int | float) and 0 <= epsilon <= 1):
        raise UserError(f'{path}: "epsilon" is {epsilon!r}; expected a number in [0, 1], or null for no clipping')
    return settings


def _timings(path: Path) -> dict[str, float]:
    timings = _json(path)
    if not isinstance(timings, dict) or not all(isinstance(value, int | float) for value in timings.values()):
        raise UserError(f'{path}: expected one object {{"stage": seconds, ...}}; remove it and run the stages again')
    return timings


def _heldout(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path}: missing; run the data stage of examples/flywheel_tiny.sh")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append({"text": str(row["text"]), "task": str(row["task"])})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path}, line {number}: {error!r}; expected {{"text": ..., "task": ...}}') from None
    if not rows:
        raise UserError(f"{path}: empty; expected one held-out problem per line")
    return rows
