"""TensorBoard's scalars: the one reader of training logs, and what is computed from a series over steps."""

from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# What this package logs at each step (megatron_remit.step_metrics).
SPEED = "tokens per second"


def event_folders(folder: Path) -> list[Path]:
    """``folder`` and the folders below it that hold event files, sorted; none if there is no log."""
    return sorted({path.parent for path in folder.rglob("events.out.tfevents.*")})


def read_scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar in the event files of ``folder``: tag -> step -> value, the steps ascending.

    Several event files of one folder are one log. A run that was stopped and resumed logs some steps twice: the later
    value counts. Event files in folders below are not read.
    """
    # With 0 every value is kept; by default TensorBoard draws a sample of 10,000 values per tag.
    log = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = {tag: {event.step: event.value for event in log.Scalars(tag)} for tag in log.Tags()["scalars"]}
    return {tag: dict(sorted(values.items())) for tag, values in found.items()}


def seconds_behind(folder: Path, tokens_per_step: int) -> dict[int, float]:
    """Step -> seconds of the training steps up to it, without start-up and checkpoints, from the log in ``folder``.

    Every step must be logged (``--tensorboard-log-interval 1``). Raises KeyError where no speed is logged.
    """
    total, behind = 0.0, {}
    for step, speed in read_scalars(folder)[SPEED].items():
        total += tokens_per_step / speed
        behind[step] = total
    return behind


def smooth(values: np.ndarray, parts: int = 30) -> np.ndarray:
    """Centred moving average over about 1/parts of the steps (at the ends over what is there), NaN ignored. [steps]."""
    half = len(values) // (2 * parts)
    known = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    n = count[high] - count[low]
    return np.where(n > 0, (total[high] - total[low]) / np.maximum(n, 1), np.nan)
