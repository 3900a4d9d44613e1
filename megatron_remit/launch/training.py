"""Training or scoring until it is finished: again after a failure of the machine, the end after one of the input.

Runs on the host with the standard library alone (see ``megatron_remit.launch.job``).
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from megatron_remit.launch import slurm
from megatron_remit.launch.commands import Commands, Progress
from megatron_remit.launch.ending import Ending
from megatron_remit.launch.failures import ASKED, Failure, hopeless, root_cause
from megatron_remit.launch.history import History, Incident, pause_seconds
from megatron_remit.launch.runner import Runner
from megatron_remit.launch.settings import Settings
from megatron_remit.launch.status import Status
from megatron_remit.launch.values import SCORE
from megatron_remit.launch.watchdog import Watchdog

# Statuses of a command that USR1 or TERM ended while it was starting, before it had a handler.
_ENDED_BY_AN_ANNOUNCEMENT = (128 + signal.SIGUSR1, 128 + signal.SIGTERM)
# What srun says of a command that cannot be started, or of flags that it does not know.
_NEVER_STARTED = (2, 126, 127)


class Training:
    """The starts of the training program, or of the scorer, in one start of the job."""

    def __init__(
        self, settings: Settings, allocation: slurm.Allocation, runner: Runner, status: Status, ending: Ending
    ) -> None:
        self._settings = settings
        self._allocation = allocation
        self._runner = runner
        self._status = status
        self._ending = ending
        self._history = History(settings.run_dir)
        self._work = "scoring" if settings.task == SCORE else "training"

    def run(self) -> None:
        """Train to the last step, or score to the last row.

        Raises:
            UserError: another try would fail too, or enough have failed.
            SystemExit: the job is back in the queue, or Slurm has ended it.
        """
        attempt, finished = 0, False
        while not finished:
            finished = self._start(f"{self._allocation.job}-{self._allocation.restarts}-{attempt}")
            attempt += 1

    def _start(self, name: str) -> bool:
        """One start of the program; whether the work is finished. If not, another try may help."""
        settings = self._settings
        saved = Progress.of(settings).saved
        size = f"{settings.nodes} x {settings.gpus_per_node} GPUs"
        line = f"training from step {saved} to {settings.train_iters} on {size}"
        if settings.task == SCORE:
            line = f"scoring into {settings.scores} on {size}"
        self._status.write("running", line, saved, logs=str(settings.logs(name)))
        commands = Commands.of(settings, name)
        self._stage(commands.stage())
        watchdog = Watchdog(settings.heartbeat, settings.hang_minutes, settings.start_minutes)
        code, hang = self._runner.watch(commands.work(), settings.nodes, watchdog)
        if self._is_finished(code, name):
            return True
        if hang:
            self._hung(hang, name, watchdog.step)
        # Workers that were asked to stop save and end with status 0.
        elif self._runner.announcements or code in (0, *_ENDED_BY_AN_ANNOUNCEMENT):
            self._ending.requeue("preempted", "preempted", reached=watchdog.step)
        else:
            self._failed(code, name, watchdog.step)
        return False

    def _is_finished(self, code: int, name: str) -> bool:
        settings = self._settings
        if settings.task == SCORE:
            # A scorer that was asked to end does so with status 0 too.
            asked = self._runner.announcements or any(settings.logs(name).glob(f"{ASKED}*"))
            return code == 0 and not asked
        return Progress.of(settings).saved >= settings.train_iters

    def _stage(self, command: list[str]) -> None:
        """Copy to the nodes' disks what ``STAGE_WHAT`` says, in each start anew: it may run on other nodes."""
        code = self._runner.run(command, self._settings.nodes) if command else 0
        if self._runner.announcements and code:
            self._ending.requeue("preempted", "preempted")
        if code:
            self._ending.fail("failed", f"no copies to STAGE={self._settings.stage} (status {code})")

    def _hung(self, hang: str, name: str, reached: int) -> None:
        text = f"hung at step {reached}: {hang}"
        known: dict[str, Any] = {"reached": reached, "logs": str(self._settings.logs(name)), "error": hang}
        failures = self._note("hung", text, name, reached, None)
        if failures > self._settings.retries:
            self._ending.fail("hung", f"{text}; {failures} failures without a new checkpoint (RETRIES)", **known)
        self._ending.requeue("hung", text, **known)

    def _failed(self, code: int, name: str, reached: int) -> None:
        settings = self._settings
        logs = settings.logs(name)
        saved = Progress.of(settings).saved
        cause = root_cause(logs)
        known: dict[str, Any] = {"reached": reached, "logs": str(logs)}
        if cause is None:
            text = f"{self._work} ended with status {code} at step {reached or saved}"
            why = "the first 'error:' or traceback above says why" if code in _NEVER_STARTED else ""
            why = why or hopeless(None, reached > 0, settings.run_dir)
        else:
            text = f"{self._work} failed at step {reached or saved}: {cause}"
            why = hopeless(cause, reached > 0, settings.run_dir)
            known |= {"rank": cause.rank, "node": cause.node, "error": cause.line or str(cause)}
        again = cause is not None and self._history.knows(text, reached) and cause.is_of_the_program
        failures = self._note("failed", text, name, reached, cause)
        text += f" ({_log(logs, cause)})" if cause else ""
        if why:
            self._ending.fail("failed", f"{text}; {why}", **known)
        if again:
            self._ending.fail("failed", f"{text}; for the second time there, so it is not tried again", **known)
        if failures > settings.retries:
            times = f"{failures} failures without a new checkpoint (RETRIES)"
            hint = "" if cause else "; the first 'error:' or traceback above says why"
            self._ending.fail("failed", f"{text}; {times}{hint}", **known)
        bad = [node for node in self._history.bad_nodes(settings.node_failures) if node in self._allocation.hosts()]
        if bad:
            self._ending.requeue("failed", text, bad, **known)
        self._pause(text, failures, saved, known)

    def _pause(self, text: str, failures: int, saved: int, known: dict[str, Any]) -> None:
        seconds = pause_seconds(self._settings.retry_seconds, failures)
        line = f"{text}; try {failures} of {self._settings.retries} begins in {seconds:g} s"
        self._status.write("retrying", line, saved, **known)
        if not self._runner.pause(seconds):
            self._ending.requeue("preempted", "preempted", **known)

    def _note(self, kind: str, text: str, name: str, reached: int, cause: Failure | None) -> int:
        """Note what happened; how often it has since the last checkpoint."""
        saved = Progress.of(self._settings).saved
        # Of an echo it is not known where it began.
        rank, node = (cause.rank, cause.node) if cause and not cause.is_echo else (None, "")
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._history.add(Incident(kind, saved, reached, rank, node, text, now, name))
        return self._history.in_a_row(saved)


def _log(logs: Path, cause: Failure) -> str:
    return f"{logs}/rank-{cause.rank:05d}.stderr.log"
