"""Whether a run goes on, by its heartbeat.

Runs on the host with the standard library alone (see ``megatron_remit.launch.job``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from megatron_remit import heartbeat

_MOVING = (heartbeat.TRAINING, heartbeat.SCORING)
"""What has a beat for each step."""


class Watchdog:
    """Looks at the heartbeat of one start of the training program.

    The rank that writes it is on the first node, where the job looks: both see the same file even if other nodes see it
    later. Times are those of this process alone, so clocks need not agree.
    """

    def __init__(
        self, path: Path, hang_minutes: float, start_minutes: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``hang_minutes`` may pass between two steps. ``start_minutes`` may pass before the first one has ended, in a
        validation and in a save. With 0 for ``hang_minutes`` nothing is ever taken for a hang."""
        self._path = path
        self._hang_minutes = hang_minutes
        self._start_minutes = max(start_minutes, hang_minutes)
        self._clock = clock
        # That of an earlier start says nothing about this one.
        path.unlink(missing_ok=True)
        self._last: heartbeat.Beat | None = None
        self._since = clock()

    @property
    def step(self) -> int:
        """The last step that this start has made; 0 if it has made none."""
        self._look()
        return self._last.step if self._last else 0

    def hang(self) -> str:
        """What has been going on for too long, in words; empty while the run goes on."""
        self._look()
        step = self._last.step if self._last else 0
        doing = self._last.doing if self._last else heartbeat.STARTING
        limit = self._hang_minutes if step and doing in _MOVING else self._start_minutes
        if not self._hang_minutes or self._clock() - self._since < 60 * limit:
            return ""
        if not step:
            return f"no first step within {limit:g} minutes"
        while_doing = "" if doing in _MOVING else f", while {doing}"
        return f"no step for {limit:g} minutes after step {step}{while_doing}"

    def _look(self) -> None:
        beat = heartbeat.read(self._path)
        if beat is not None and beat != self._last:
            self._last, self._since = beat, self._clock()
