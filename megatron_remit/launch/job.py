"""The job from import to export, preempted or not: what a script in ``examples/`` hands over to.

The batch script runs on the first node's host, and with a container nothing but a plain Python may be there. So this
module and what it imports need Python 3.9 and its standard library only. What needs torch or Megatron runs through
``slurm.step``, inside the image if there is one. ``exec`` makes this process the batch script, so the signals that
Slurm sends to the batch script arrive here.
"""

from __future__ import annotations

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

from megatron_remit.errors import UserError, cli
from megatron_remit.launch import slurm
from megatron_remit.launch.commands import Commands, Progress
from megatron_remit.launch.ending import Ending, is_told
from megatron_remit.launch.notes import Notes
from megatron_remit.launch.runner import Runner
from megatron_remit.launch.settings import Settings, read
from megatron_remit.launch.status import Status, say
from megatron_remit.launch.training import Training
from megatron_remit.launch.values import SCORE, TRAIN, Host

_LOCK_POLL_SECONDS = 0.5
_ARGUMENTS = ((), ("--dry-run",), ("--dry-run", "--simulate"), ("--finished",))


class Job:
    """One start of a job: it imports, trains and exports what has not been imported, trained and exported yet."""

    def __init__(self, settings: Settings, allocation: slurm.Allocation) -> None:
        self.settings = settings
        self.allocation = allocation
        self.commands = Commands.of(settings)
        self._runner = Runner(settings)
        self._status = Status(settings.run_dir, settings.train_iters, allocation.job, allocation.restarts)
        self._ending = Ending(settings, allocation, self._status)

    def run(self) -> None:
        """Do the job.

        Raises:
            UserError: a command failed, or the job cannot be put back into the queue.
            SystemExit: the job was put back into the queue (status 0), or Slurm has ended it (1).
        """
        settings = self.settings
        self._runner.listen()
        made = [settings.run_dir, settings.import_dir]
        if settings.task == TRAIN:
            made += [settings.run_dir / "checkpoints", settings.run_dir / "tensorboard"]
        for folder in made:
            folder.mkdir(parents=True, exist_ok=True)
        # Two jobs that write the same checkpoints would destroy them.
        if self._runner.try_lock(settings.run_dir / "job.lock", "RUN_DIR") is None:
            raise UserError(f"RUN_DIR={settings.run_dir}: another job is running there; give each job its own")
        try:
            self._work()
        except UserError as error:
            if not is_told(error):
                self._status.record("failed", f"error: {error}", self._saved(), requeued=False)
            raise

    def _work(self) -> None:
        settings, commands, notes = self.settings, self.commands, Notes(self.settings.run_dir)
        # What a scorer refuses it says before its first row; the plan is of a run that trains.
        if settings.task == TRAIN:
            if self._saved():
                notes.check_base(settings.base_hf, commands.base)
            else:
                self._succeed(commands.plan(), "these settings cannot be run")
            notes.note_base(settings.base_hf, commands.base)
        self._import_once(settings.base_hf, commands.base)
        if commands.reference is not None and settings.rl_hf is not None:
            self._import_once(settings.rl_hf, commands.reference)
        if settings.task == SCORE or self._saved() < settings.train_iters:
            if settings.task == TRAIN:
                notes.note_export(None)
            Training(settings, self.allocation, self._runner, self._status, self._ending).run()
        if settings.task == SCORE:
            self._status.write("finished", f"finished with {Progress.of(settings)}", self._saved())
            return
        exported = settings.run_dir / "hf"
        # A run that was made longer has the export of its earlier end.
        if not exported.is_dir() or notes.exported != self._saved():
            say(f"exporting step {self._saved()} to {exported}")
            self._succeed(commands.export(), f"no export to {exported}")
            notes.note_export(self._saved())
        self._status.write("finished", f"finished at {Progress.of(settings)}: {exported}", self._saved())

    def _import_once(self, hf: Path, out: Path) -> None:
        """Import ``hf`` unless ``out`` is there, which appears whole: the import renames it at the end."""
        if out.is_dir():
            return
        # The lock keeps another job from doing the same work.
        lock = self._runner.try_lock(Path(f"{out}.lock"), "IMPORT_DIR")
        if lock is None:
            say(f"waiting for another job that imports {hf}")
        while lock is None:
            time.sleep(_LOCK_POLL_SECONDS)
            if self._runner.announcements:
                self._ending.requeue("preempted", "preempted")
            lock = self._runner.try_lock(Path(f"{out}.lock"), "IMPORT_DIR")
        if out.is_dir():
            say(f"imported by another job: {out}")
        else:
            say(f"importing {hf}")
            # What an import that was killed left; no other is under way while the lock is held.
            for left in out.parent.glob(f"{glob.escape(out.name)}.tmp-*"):
                shutil.rmtree(left)
            self._succeed(self.commands.import_model(hf, out), f"no import of {hf}")
        self._runner.unlock(lock)

    def _succeed(self, command: Sequence[str], failure: str) -> None:
        """Run ``command`` on one node; if it fails, end the job, or requeue it if Slurm may have had it ended."""
        status = self._runner.run(command, 1)
        if status:
            if self._runner.announcements:
                self._ending.requeue("preempted", "preempted")
            raise UserError(f"{failure} (status {status})")

    def _saved(self) -> int:
        return Progress.of(self.settings).saved


def quote(command: Sequence[str]) -> str:
    """``command`` as a shell would take it, a flag per line."""
    first, *others = command
    break_line = " \\\n    "
    return shlex.quote(first) + "".join(
        (break_line if word.startswith("-") else " ") + shlex.quote(word) for word in others
    )


def dry_run(settings: Settings, simulate: bool = False) -> int:
    """Print the training command and the plan, without Slurm; the plan's exit status. With ``simulate`` the plan also
    runs a step of the job on fake CUDA tensors."""
    commands = Commands.of(settings)
    for command in filter(None, (commands.stage(), commands.work())):
        print(quote(slurm.step(command, settings.nodes, settings.container, settings.setup)), flush=True)
    if settings.container is not None:
        # The image cannot be entered without Slurm: the same script inside it does what follows.
        asked = "--dry-run --simulate" if simulate else "--dry-run"
        print(f"For the check of the corpus and the memory, run this script with {asked} inside the image.")
        return 0
    environment = {**os.environ, **settings.environment, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(commands.plan(simulate), env=environment).returncode


def is_finished(settings: Settings) -> bool:
    """Whether the job has nothing left to do: its exported model is there, and no run that was made longer since."""
    exported = settings.run_dir / "hf"
    return (exported / "config.json").exists() and Notes(settings.run_dir).exported_after(settings.train_iters)


def run_script(project: str, script: str, recipe: str, *arguments: str) -> None:
    """Do the job of ``script`` with the settings of ``recipe``, show it with ``--dry-run`` (and ``--simulate``), or say
    with the status 0 or 1 of ``--finished`` whether it has been done, as ``examples/sweep.sh`` asks.

    Raises:
        UserError: unknown arguments, a setting that cannot be used, or a job that failed.
        SystemExit: the status of a dry run, of ``--finished``, or of a job that ended early.
    """
    if arguments not in _ARGUMENTS:
        raise UserError(
            f"unknown arguments '{' '.join(arguments)}'; settings are environment variables, the only arguments are "
            "--dry-run, --dry-run --simulate and --finished"
        )
    allocation = slurm.Allocation.read(os.environ)
    settings = read(os.environ, recipe, Host(Path(project), Path(script), allocation))
    if "--dry-run" in arguments:
        raise SystemExit(dry_run(settings, "--simulate" in arguments))
    if "--finished" in arguments:
        raise SystemExit(0 if is_finished(settings) else 1)
    if not allocation.job:
        raise UserError("this is a Slurm script: submit it with sbatch, or pass --dry-run")
    Job(settings, allocation).run()


def main() -> None:
    """What examples/lib/cluster.sh runs; the program's arguments are those of :func:`run_script`."""
    # Ctrl-C ends a dry run as it ends a shell script, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    cli(lambda: run_script(*sys.argv[1:]))
