"""What a run is doing, in a small file that is written anew at each step: who looks at it sees whether it goes on.

The training program writes it (``--heartbeat``), the job that started it reads it (``launch/watchdog.py``), on a host
that may have no other Python than its own: standard library only, for Python 3.9. A beat is one write of 128 bytes at
the beginning of an open file: no file is made or renamed, and nothing waits for a disk.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BYTES = 128
STARTING, TRAINING, VALIDATING, SAVING, SCORING = "starting", "training", "validating", "saving", "scoring"


@dataclass(frozen=True)
class Beat:
    """What a run did last."""

    step: int
    """The last step that it has made; 0 before its first one, also in a run that was resumed."""
    doing: str
    """One of the words above."""
    time: float
    """Seconds since the epoch, by the clock of the rank."""


class _Heart:
    """The open file, in the rank that writes it."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._step = 0

    def begin(self, path: Path) -> None:
        """Raises OSError: ``path`` cannot be written."""
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def beat(self, doing: str, number: Callable[[], int] | None = None) -> None:
        if self._descriptor is None:
            return
        if number is not None:
            self._step = number()
        text = json.dumps({"step": self._step, "doing": doing, "time": round(time.time(), 3)})
        try:
            os.pwrite(self._descriptor, text.ljust(_BYTES - 1).encode() + b"\n", 0)
        except OSError:
            pass  # a full disk: training itself will say so, if it matters to it


_heart = _Heart()


def begin(path: Path) -> None:
    """From now on this process writes its beats to ``path``. Raises OSError: it cannot be written."""
    _heart.begin(path)
    _heart.beat(STARTING)


def beat(doing: str, step: int) -> None:
    """Write a beat, in a process that has begun."""
    _heart.beat(doing, lambda: step)


def after_step(train_step: Callable[..., Any], number: Callable[[], int]) -> Callable[..., Any]:
    """Wrap ``train_step``: a beat once it has returned. ``number`` gives the number of the step, from 1."""

    @functools.wraps(train_step)
    def call(*args: Any, **named: Any) -> Any:
        result = train_step(*args, **named)
        _heart.beat(TRAINING, number)
        return result

    return call


def before(doing: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``function``: a beat that says ``doing`` before it begins."""

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        _heart.beat(doing)
        return function(*args, **named)

    return call


def read(path: Path) -> Beat | None:
    """The last beat in ``path``; None if there is none, or if it cannot be read just now."""
    try:
        found = json.loads(path.read_bytes())
        return Beat(int(found["step"]), str(found["doing"]), float(found["time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
