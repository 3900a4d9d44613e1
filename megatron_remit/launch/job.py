"""The job from import to export, preempted or not: what a script in ``examples/`` hands over to.

The batch script runs on the first node's host, and with a container nothing but a plain Python may be there. So this
module and what it imports (``commands``, ``settings``, ``variables``, ``slurm``, ``megatron_remit.errors``) need Python
3.9 and its standard library only. What needs torch or Megatron runs through ``slurm.step``, inside the image if there
is one. ``exec`` makes this process the batch script, so the signals that Slurm sends to the batch script arrive here.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from megatron_remit.errors import UserError, cli
from megatron_remit.launch import slurm
from megatron_remit.launch.commands import Commands, saved_step
from megatron_remit.launch.settings import Settings, read
from megatron_remit.launch.variables import Host

# Statuses of a command that USR1 or TERM ended while it was starting, before it had a handler.
_ENDED_BY_AN_ANNOUNCEMENT = (128 + signal.SIGUSR1, 128 + signal.SIGTERM)
_LOCK_POLL_SECONDS = 0.5


class Job:
    """One start of a job: it imports, trains and exports what has not been imported, trained and exported yet."""

    def __init__(self, settings: Settings, allocation: slurm.Allocation) -> None:
        self.settings = settings
        self.allocation = allocation
        self.commands = Commands.of(settings)
        self._announcements = 0  # of preemption or of the time limit, by Slurm
        self._child: subprocess.Popen[bytes] | None = None
        # Descriptors of locked files. The kernel drops a lock when the last process that holds it has ended: none is
        # ever left behind.
        self._locks: list[int] = []

    def run(self) -> None:
        """Do the job.

        Raises:
            UserError: a command failed, or the job cannot be put back into the queue.
            SystemExit: the job was put back into the queue (status 0), or Slurm has ended it (1).
        """
        settings, commands = self.settings, self.commands
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._on_announcement)
        for folder in (settings.run_dir / "checkpoints", settings.run_dir / "tensorboard", settings.import_dir):
            folder.mkdir(parents=True, exist_ok=True)
        # Two jobs that write the same checkpoints would destroy them.
        if self._try_lock(settings.run_dir / "job.lock", "RUN_DIR") is None:
            raise UserError(f"RUN_DIR={settings.run_dir}: another job is running there; give each job its own")
        if self._saved() == 0:
            self._succeed(commands.plan(), "these settings cannot be run")
        self._import_once(settings.base_hf, commands.base)
        if commands.reference is not None and settings.rl_hf is not None:
            self._import_once(settings.rl_hf, commands.reference)
        if self._saved() < settings.train_iters:
            self._train()
        exported = settings.run_dir / "hf"
        if not exported.is_dir():
            say(f"exporting step {self._saved()} to {exported}")
            self._succeed(commands.export(), f"no export to {exported}")
        say(f"done: {exported}")

    def _train(self) -> None:
        settings = self.settings
        say(
            f"training from step {self._saved()} to {settings.train_iters} on "
            f"{settings.nodes} x {settings.gpus_per_node} GPUs"
        )
        status = self._run(self.commands.train(), settings.nodes)
        if self._saved() >= settings.train_iters:
            return
        # Workers that were asked to stop save and end with status 0.
        if self._announcements or status in (0, *_ENDED_BY_AN_ANNOUNCEMENT):
            self._requeue()
        raise UserError(
            f"training ended with status {status} at step {self._saved()}; "
            "the first 'error:' or traceback above says why"
        )

    def _import_once(self, hf: Path, out: Path) -> None:
        """Import ``hf`` unless ``out`` is there, which appears whole: the import renames it at the end."""
        if out.is_dir():
            return
        # The lock keeps another job from doing the same work.
        lock = self._try_lock(Path(f"{out}.lock"), "IMPORT_DIR")
        if lock is None:
            say(f"waiting for another job that imports {hf}")
        while lock is None:
            time.sleep(_LOCK_POLL_SECONDS)
            if self._announcements:
                self._requeue()
            lock = self._try_lock(Path(f"{out}.lock"), "IMPORT_DIR")
        if out.is_dir():
            say(f"imported by another job: {out}")
        else:
            say(f"importing {hf}")
            # What an import that was killed left; no other is under way while the lock is held.
            for left in out.parent.glob(f"{glob.escape(out.name)}.tmp-*"):
                shutil.rmtree(left)
            self._succeed(self.commands.import_model(hf, out), f"no import of {hf}")
        self._locks.remove(lock)
        os.close(lock)

    def _succeed(self, command: Sequence[str], failure: str) -> None:
        """Run ``command`` on one node; if it fails, end the job, or requeue it if Slurm may have had it ended."""
        status = self._run(command, 1)
        if status:
            if self._announcements:
                self._requeue()
            raise UserError(f"{failure} (status {status})")

    def _run(self, command: Sequence[str], nodes: int) -> int:
        """Run ``command`` on ``nodes`` nodes; its exit status as a shell gives it, 128 + n after signal n."""
        before = self._announcements
        # The locks are handed on: a step that outlives a killed batch script still keeps other jobs away.
        try:
            self._child = subprocess.Popen(
                slurm.step(command, nodes, self.settings.container),
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.settings.environment},
                pass_fds=self._locks,
            )
        except OSError as error:
            print(f"error: {error}", file=sys.stderr)
            return 127  # as a shell says that there is no such command
        if self._announcements > before:
            self._pass_on()  # it came before the child was there to get it
        status = self._child.wait()
        self._child = None
        return status if status >= 0 else 128 - status

    def _on_announcement(self, _number: int, _frame: FrameType | None) -> None:
        # Slurm sends USR1 before the time limit (#SBATCH --signal=B:USR1@...) and may send TERM on preemption.
        say("signal from Slurm: saving and stopping")
        self._announcements += 1
        self._pass_on()

    def _pass_on(self) -> None:
        """Send USR1 to srun, which passes it on to its tasks: the launcher has the workers save, anything else ends."""
        if self._child is not None:
            try:
                self._child.send_signal(signal.SIGUSR1)
            except ProcessLookupError:
                pass  # ended since

    def _requeue(self) -> NoReturn:
        """Put this job back into the queue; it goes on from its last checkpoint."""
        step = f"step {self._saved()} of {self.settings.train_iters}"
        # A job that the user cancelled, or that Slurm itself has requeued or timed out, is ending already.
        state = self.allocation.state()
        if state != "RUNNING":
            say(f"ended by Slurm ({state}) at {step}")
            raise SystemExit(1)
        if self.allocation.restarts >= self.settings.max_restarts:
            raise UserError(
                f"restarted {self.allocation.restarts} times (MAX_RESTARTS): not requeued; "
                "submit the same command again to continue"
            )
        say(f"requeued at {step}")
        if not self.allocation.requeue():
            raise UserError("Slurm does not requeue this job; submit the same command again to continue")
        raise SystemExit(0)

    def _saved(self) -> int:
        return saved_step(self.settings.run_dir)

    def _try_lock(self, path: Path, variable: str) -> int | None:
        """A descriptor of ``path`` with the lock on it, added to ``_locks``; None if another process has the lock."""
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


def say(text: str) -> None:
    """A line of the job itself in its log. Unbuffered, so that it stands between the lines of the commands, and safe in
    a signal handler."""
    os.write(1, f"> {time.strftime('%H:%M:%S', time.gmtime())} {text}\n".encode())


def quote(command: Sequence[str]) -> str:
    """``command`` as a shell would take it, a flag per line."""
    first, *others = command
    break_line = " \\\n    "
    return shlex.quote(first) + "".join(
        (break_line if word.startswith("-") else " ") + shlex.quote(word) for word in others
    )


def dry_run(settings: Settings) -> int:
    """Print the training command and the plan, without Slurm; the plan's exit status."""
    commands = Commands.of(settings)
    print(quote(slurm.step(commands.train(), settings.nodes, settings.container)), flush=True)
    if settings.container is not None:
        # The image cannot be entered without Slurm: the same script inside it does what follows.
        print("For the check of the corpus and the memory, run this script with --dry-run inside the image.")
        return 0
    environment = {**os.environ, **settings.environment, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(commands.plan(), env=environment).returncode


def run_script(project: str, script: str, recipe: str, *arguments: str) -> None:
    """Do the job of ``script`` with the settings of ``recipe``, or show it with ``--dry-run``.

    Raises:
        UserError: an unknown argument, a setting that cannot be used, or a job that failed.
        SystemExit: the status of a dry run, or of a job that ended early.
    """
    argument = arguments[0] if arguments else ""
    if argument not in ("", "--dry-run"):
        raise UserError(
            f"unknown argument '{argument}'; settings are environment variables, the only argument is --dry-run"
        )
    allocation = slurm.Allocation.read(os.environ)
    settings = read(os.environ, recipe, Host(Path(project), Path(script), allocation))
    if argument == "--dry-run":
        raise SystemExit(dry_run(settings))
    if not allocation.job:
        raise UserError("this is a Slurm script: submit it with sbatch, or pass --dry-run")
    Job(settings, allocation).run()


def main() -> None:
    """What examples/lib/cluster.sh runs: ``PROJECT SCRIPT RECIPE [--dry-run]`` are the program's arguments."""
    # Ctrl-C ends a dry run as it ends a shell script, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    cli(lambda: run_script(*sys.argv[1:]))
