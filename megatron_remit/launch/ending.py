"""How a job ends before its work is done: back in the queue, or with an error.

Runs on the host with the standard library alone (see ``megatron_remit.launch.job``).
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any, NoReturn

from megatron_remit.errors import UserError
from megatron_remit.launch import slurm
from megatron_remit.launch.commands import Progress
from megatron_remit.launch.settings import Settings
from megatron_remit.launch.status import Status, say


class Ending:
    """Ends the job, and says in ``RUN_DIR/status.json`` how."""

    def __init__(self, settings: Settings, allocation: slurm.Allocation, status: Status) -> None:
        self._settings = settings
        self._allocation = allocation
        self._status = status

    def requeue(self, state: str, why: str, exclude: Sequence[str] = (), **more: Any) -> NoReturn:
        """Put this job back into the queue; it goes on from its last checkpoint.

        Args:
            state: of ``Status``.
            why: the same in words.
            exclude: nodes on which the job shall not start again.
            more: what else ``status.json`` gets.

        Raises:
            SystemExit: it was done (status 0), or Slurm had ended the job (1).
            UserError: Slurm does not requeue it, or it has been requeued often enough.
        """
        progress = Progress.of(self._settings)
        # A job that the user cancelled, or that Slurm itself has requeued or timed out, is ending already.
        found = self._allocation.state()
        if found != "RUNNING":
            self._status.write("ended", f"ended by Slurm ({found}) at {progress}", progress.saved, **more)
            raise SystemExit(1)
        if self._allocation.restarts >= self._settings.max_restarts:
            self.fail(
                state,
                f"{why}: restarted {self._allocation.restarts} times (MAX_RESTARTS): not requeued; "
                "submit the same command again to continue",
                **more,
            )
        if exclude:
            say(f"{', '.join(exclude)}: failed too often (NODE_FAILURES), and will not be used again by this job")
        self._status.write(state, f"{why}: requeued at {progress}", progress.saved, requeued=True, **more)
        # Slurm now ends this job's processes with SIGTERM: what follows takes less than its KillWait.
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if not self._allocation.requeue():
            self.fail(state, f"{why}: Slurm does not requeue this job; submit the same command again to continue")
        if exclude:
            self._allocation.exclude(exclude)
        raise SystemExit(0)

    def fail(self, state: str, text: str, **more: Any) -> NoReturn:
        """End the job with an error. Raises UserError: always."""
        self._status.record(state, f"error: {text}", Progress.of(self._settings).saved, requeued=False, **more)
        raise _Told(text)


class _Told(UserError):
    """An error that is in ``status.json`` already."""


def is_told(error: UserError) -> bool:
    """Whether ``status.json`` says ``error`` already, with more than its text."""
    return isinstance(error, _Told)
