"""Commands on the nodes, with the signals that Slurm sends to the batch script.

Runs on the host with the standard library alone (see ``megatron_remit.launch.job``).
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from megatron_remit.errors import UserError
from megatron_remit.launch import slurm
from megatron_remit.launch.settings import Settings
from megatron_remit.launch.status import say
from megatron_remit.launch.watchdog import Watchdog

_POLL_SECONDS = 0.5
# The launchers print the stacks of their ranks and end them (``launch/node.py``), which takes seconds.
_END_SECONDS = 60


class Runner:
    """Runs one command at a time; it hands on Slurm's announcements, and holds the locks of the job."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.announcements = 0
        """How often Slurm has said that the job is to end: preemption, or its time is nearly over."""
        self._child: subprocess.Popen[bytes] | None = None
        # Descriptors of locked files. The kernel drops a lock when the last process that holds it has ended: none is
        # ever left behind.
        self._locks: list[int] = []

    def listen(self) -> None:
        """From now on Slurm's signals to this process are announcements."""
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._on_announcement)

    def run(self, command: Sequence[str], nodes: int) -> int:
        """Run ``command`` on ``nodes`` nodes; its exit status as a shell gives it, 128 + n after signal n."""
        return self.watch(command, nodes, None)[0]

    def watch(self, command: Sequence[str], nodes: int, watchdog: Watchdog | None) -> tuple[int, str]:
        """As :meth:`run`, and end the command once it hangs: the second result says then in words how."""
        before = self.announcements
        # The locks are handed on: a step that outlives a killed batch script still keeps other jobs away.
        try:
            self._child = subprocess.Popen(
                slurm.step(command, nodes, self._settings.container, self._settings.setup),
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self._settings.environment},
                pass_fds=self._locks,
            )
        except OSError as error:
            print(f"error: {error}", file=sys.stderr)
            return 127, ""  # as a shell says that there is no such command
        if self.announcements > before:
            self._pass_on(signal.SIGUSR1)  # it came before the child was there to get it
        status, hang = self._wait(self._child, watchdog)
        self._child = None
        return (status if status >= 0 else 128 - status), hang

    def _wait(self, child: subprocess.Popen[bytes], watchdog: Watchdog | None) -> tuple[int, str]:
        hang = ""
        while not hang:
            try:
                return child.wait(_POLL_SECONDS if watchdog else None), ""
            except subprocess.TimeoutExpired:
                hang = watchdog.hang() if watchdog else ""
        say(f"hung: {hang}; its ranks say where they are, and are ended")
        self._pass_on(signal.SIGUSR2)
        try:
            return child.wait(_END_SECONDS), hang
        except subprocess.TimeoutExpired:
            child.kill()  # a launcher hangs too: Slurm ends what is left when it requeues the job
            return child.wait(), hang

    def pause(self, seconds: float) -> bool:
        """Wait; False if Slurm said meanwhile that the job is to end."""
        before, end = self.announcements, time.monotonic() + seconds
        while self.announcements == before and time.monotonic() < end:
            time.sleep(min(_POLL_SECONDS, max(0.0, end - time.monotonic())))
        return self.announcements == before

    def _on_announcement(self, _number: int, _frame: FrameType | None) -> None:
        # Slurm sends USR1 before the time limit (#SBATCH --signal=B:USR1@...) and may send TERM on preemption.
        say("signal from Slurm: saving and stopping")
        self.announcements += 1
        self._pass_on(signal.SIGUSR1)

    def _pass_on(self, number: signal.Signals) -> None:
        """Send a signal to srun, which passes it on to its tasks. After USR1 the launcher has the workers save, after
        USR2 it ends them; anything else ends at once."""
        if self._child is not None:
            try:
                self._child.send_signal(number)
            except ProcessLookupError:
                pass  # ended since

    def try_lock(self, path: Path, variable: str) -> int | None:
        """A descriptor of ``path`` with the lock on it; None if another process has the lock.

        Raises:
            UserError: the file system has no locks. ``variable`` names the folder.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            raise UserError(
                f"no lock on {path}: does the file system of {variable} support flock? ({error.strerror})"
            ) from None
        self._locks.append(descriptor)
        return descriptor

    def unlock(self, descriptor: int) -> None:
        """Let go of a lock."""
        self._locks.remove(descriptor)
        os.close(descriptor)
