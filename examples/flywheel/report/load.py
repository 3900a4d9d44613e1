"""Reads a run folder: evaluations, TensorBoard curves, timings, settings and held-out texts.

docs/report.md describes the folder. Every missing or malformed file is a UserError that names it.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from results.cells import read_cells

from megatron_remit.analysis.scalars import SPEED, event_folders, read_scalars
from megatron_remit.errors import UserError

ARM_NAMES = {
    "base": "base",
    "mid": "mid-trained, before RL",
    "rl_reference": "RL reference",
    "ntp": "NTP",
    "remit": "ReMiT",
    "remit_nonrl": "ReMiT, non-RL reference",
}
OPTIONAL_ARMS = ("mid",)
CURVE_ARMS = ("ntp", "remit", "remit_nonrl")
LOSS = "lm loss"
LOSS_BY_SAMPLES = "lm loss vs samples"  # Megatron's own second copy of a loss: its x axis is the consumed samples
REMIT_TAGS = ("delta mean", "weight mean", "weight std", "clipped low", "clipped high", "reference share")


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one arm on one task: a share in [0, 1], its binomial standard error, the number of problems."""

    accuracy: float
    stderr: float
    n: int

    def wilson(self, z: float = 1.96) -> tuple[float, float]:
        """The Wilson interval (95 % by default); unlike +- z standard errors it is not empty at 0 or 100 %."""
        centre = (self.accuracy + z * z / (2 * self.n)) / (1 + z * z / self.n)
        spread = self.accuracy * (1 - self.accuracy) / self.n + z * z / (4 * self.n * self.n)
        half = z * math.sqrt(spread) / (1 + z * z / self.n)
        # At 0 and at 100 % the bound is the accuracy itself, which rounding may miss by one ulp.
        return min(max(0.0, centre - half), self.accuracy), max(min(1.0, centre + half), self.accuracy)


@dataclass(frozen=True)
class Curves:
    """The training log of one arm: tokens consumed, and every series, are [steps]; NaN where a step was not logged."""

    tokens: np.ndarray
    series: dict[str, np.ndarray]
    first_step: int

    def seconds(self) -> float:
        """Seconds of the logged steps (start-up and checkpoints not counted), from their tokens per second."""
        speed = self.series[SPEED]
        known = np.isfinite(speed) & (speed > 0)
        return float((np.diff(self.tokens, prepend=0)[known] / speed[known]).sum())

    def median(self, tag: str) -> float | None:
        """The median of a series over the steps, None if the run did not log it."""
        values = self.series.get(tag)
        known = values[np.isfinite(values)] if values is not None else np.empty(0)
        return float(np.median(known)) if known.size else None


@dataclass(frozen=True)
class RunFolder:
    """What a run folder holds."""

    folder: Path
    accuracies: dict[str, dict[str, Accuracy]]
    eval_seconds: dict[str, float | None]
    tasks: list[str]
    curves: dict[str, Curves]
    timings: dict[str, float]
    settings: dict[str, Any]
    heldout: list[dict[str, Any]]

    @property
    def epsilon(self) -> float | None:
        """The clip width of the ReMiT weight, None for no clipping."""
        return self.settings["epsilon"]

    @property
    def complete(self) -> bool:
        """Whether it has the evaluations by lm-eval and the logs of one run of each arm."""
        return set(CURVE_ARMS) <= set(self.curves) and set(CURVE_ARMS) <= set(self.accuracies)

    @property
    def sequence_length(self) -> int:
        """The length of a training sequence, tokens."""
        return self.settings["sequence_length"]


def load_run(folder: Path) -> RunFolder:
    """Read ``folder``. Raises UserError naming the first file that is missing or not as described in docs/report.md."""
    if not folder.is_dir():
        raise UserError(f"--run-dir {folder}: no such folder; run examples/flywheel_tiny.sh first")
    settings = _settings(folder / "settings.json")
    accuracies, seconds = {}, {}
    # Where the run has cells (several runs of each arm), they say what the effect is, and the rest may be there or not.
    optional = tuple(ARM_NAMES) if read_cells(folder) else OPTIONAL_ARMS
    for arm in ARM_NAMES:
        path = folder / "eval" / f"{arm}.json"
        if arm in optional and not path.exists():
            continue
        accuracies[arm], seconds[arm] = _evaluation(path)
    tasks = list(next(iter(accuracies.values()), ()))
    for arm, per_task in accuracies.items():
        if set(per_task) != set(tasks):
            found = ", ".join(sorted(per_task))
            raise UserError(
                f"{folder / 'eval' / (arm + '.json')}: tasks {found}; expected those of base.json: {', '.join(tasks)}; "
                "evaluate all arms on the same tasks"
            )
    logs = {arm: folder / "tb" / arm for arm in (*CURVE_ARMS, *OPTIONAL_ARMS)}
    curves = {
        arm: _curves(path, settings["sequence_length"])
        for arm, path in logs.items()
        if arm not in optional or path.is_dir()
    }
    for arm in ("base", "rl_reference"):
        if not (folder / "hf" / arm / "config.json").is_file():
            raise UserError(f"{folder / 'hf' / arm}: no Hugging Face model there (config.json is missing); export it")
    timings = _timings(folder / "timings.json")
    heldout = _heldout(folder / "data" / "heldout.jsonl")
    return RunFolder(folder, accuracies, seconds, tasks, curves, timings, settings, heldout)


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


def _evaluation(path: Path) -> tuple[dict[str, Accuracy], float | None]:
    content = _json(path)
    try:
        accuracies = {}
        for task, value in content["tasks"].items():
            accuracy, n = float(value["accuracy"]), int(value["n"])
            if not 0 <= accuracy <= 1 or n < 1:
                raise ValueError(f"{task}: accuracy {accuracy} of n {n}; expected a share in [0, 1] of n >= 1 problems")
            accuracies[task] = Accuracy(accuracy, math.sqrt(accuracy * (1 - accuracy) / n), n)
        if not accuracies:
            raise ValueError("no task")
        return accuracies, content.get("seconds")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        expected = '{"tasks": {NAME: {"accuracy", "n"}}}; evaluate this arm again'
        raise UserError(f"{path}: {type(error).__name__}: {error}; expected {expected}") from None


def _curves(folder: Path, sequence_length: int) -> Curves:
    if not folder.is_dir() or not event_folders(folder):
        raise UserError(f"{folder}: no TensorBoard event file; train this arm with --tensorboard-dir {folder}")
    scalars = read_scalars(folder)
    for tag in (LOSS, LOSS_BY_SAMPLES, "grad-norm", SPEED):
        if not scalars.get(tag):
            raise UserError(f"{folder}: no scalar {tag!r} in the event files; found: {', '.join(scalars) or 'none'}")
    if folder.name.startswith("remit"):
        missing = [tag for tag in REMIT_TAGS if not scalars.get(tag)]
        if missing:
            raise UserError(f"{folder}: no scalar {missing[0]!r}; expected a run with --objective remit")
    steps, samples = list(scalars[LOSS]), list(scalars[LOSS_BY_SAMPLES])
    if len(steps) != len(samples):
        raise UserError(
            f"{folder}: {len(steps)} values of {LOSS!r} but {len(samples)} of {LOSS_BY_SAMPLES!r}: event files of two "
            "runs are mixed; empty the folder and train this arm again"
        )
    series = {
        tag: np.array([values.get(step, math.nan) for step in steps])
        for tag, values in scalars.items()
        if not tag.endswith("vs samples")
    }
    if not np.isfinite(series[LOSS]).any():
        raise UserError(f"{folder}: {LOSS!r} is not a number at any step: training diverged; lower the learning rate")
    return Curves(np.array(samples, dtype=np.int64) * sequence_length, series, steps[0])


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
