"""torchrun for a preemptible job: ``srun python -m megatron_remit.launch.node LOGS <torchrun's arguments>``.

Slurm announces preemption and the time limit with SIGTERM or SIGUSR1. Megatron's ``--exit-signal-handler`` saves after
the current step when a *worker* gets SIGTERM. torchrun in between is in the way: it answers SIGTERM by ending its
workers, with SIGKILL after 30 seconds, which is less than many checkpoints take. So torchrun runs here as a child
that ignores both signals, and this process passes SIGTERM to the workers and then waits for as long as they need.

The job sends SIGUSR2 when the run hangs: the workers print where each of their threads is, and are ended.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from megatron_remit.launch.failures import ASKED
from megatron_remit.launch.slurm import node_rank

ANNOUNCEMENTS = (signal.SIGTERM, signal.SIGUSR1)
POLL_SECONDS = 0.5
# torchrun's own list (--signals-to-handle) without SIGTERM.
_ENDS_TORCHRUN = "SIGINT,SIGHUP,SIGQUIT"
# What a worker gets to print its stacks, and torchrun to see that its workers have ended.
_STACKS_SECONDS = 3
_TORCHRUN_SECONDS = 15

CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""The variables that Triton and torch read, each with its folder on the node's own disk: Triton's default
is the home folder, which on a cluster is one network file system for all ranks of all nodes."""


def launch(logs: str, torchrun_arguments: Sequence[str]) -> int:
    """Run torchrun with ``torchrun_arguments`` and return its exit status; the ranks' logs go to the folder ``logs``.

    The node's rank is the scheduler's (``slurm.node_rank``), so rank 0 is on the first node of the allocation, whose
    address ``--master-addr`` gives.
    """
    received: set[int] = set()

    def remember(number: int, _frame: FrameType | None) -> None:
        received.add(number)

    # A child inherits "ignored" but not a handler: between the two settings, torchrun starts with all ignored, and so
    # do its workers, until Megatron sets its own handler for SIGTERM.
    for number in (*ANNOUNCEMENTS, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    command = [sys.executable, "-m", "megatron_remit.launch.elastic", logs]
    flags = ["--signals-to-handle", _ENDS_TORCHRUN, "--node-rank", node_rank(), *torchrun_arguments]
    torchrun = subprocess.Popen([*command, *flags], env={**os.environ, **compile_caches(os.environ)})
    for number in (*ANNOUNCEMENTS, signal.SIGUSR2):
        signal.signal(number, remember)
    asked: set[int] = set()
    noted = False
    while True:
        try:
            return torchrun.wait(timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if signal.SIGUSR2 in received:
                return _end_workers(torchrun)
            if received:
                if not noted:
                    _note(Path(logs))
                    noted = True
                _ask_workers(torchrun.pid, asked)


def _note(logs: Path) -> None:
    """Leave word for the job: on preemption Slurm may signal the tasks alone, and workers that were asked to end do so
    with status 0."""
    logs.mkdir(parents=True, exist_ok=True)
    (logs / f"{ASKED}{node_rank()}").touch()


def _end_workers(torchrun: subprocess.Popen[bytes]) -> int:
    """End a run that hangs. Workers that are stopped print nothing, and are ended all the same."""
    try:
        workers = psutil.Process(torchrun.pid).children()
    except psutil.NoSuchProcess:
        return torchrun.wait()
    _signal_each([worker for worker in workers if _handles(worker, signal.SIGUSR2)], signal.SIGUSR2)
    time.sleep(_STACKS_SECONDS)
    _signal_each(workers, signal.SIGKILL)
    try:
        return torchrun.wait(timeout=_TORCHRUN_SECONDS)
    except subprocess.TimeoutExpired:
        torchrun.kill()
        return torchrun.wait()


def _signal_each(workers: Sequence[psutil.Process], number: signal.Signals) -> None:
    for worker in workers:
        try:
            worker.send_signal(number)
        except psutil.NoSuchProcess:
            pass  # ended since


def _ask_workers(torchrun: int, asked: set[int]) -> None:
    """Send SIGTERM to each worker once, as soon as it handles it.

    Before that, while it starts up, the signal would be lost. A second one could meet Python at its exit, when handlers
    are gone and SIGTERM ends a process whose checkpoint is saved as if it had failed.
    """
    try:
        ready = [worker for worker in psutil.Process(torchrun).children() if _handles(worker, signal.SIGTERM)]
        for worker in ready:
            if worker.pid not in asked:
                asked.add(worker.pid)
                print(f"> asked worker {worker.pid} to save a checkpoint after this step and to end", flush=True)
                worker.send_signal(signal.SIGTERM)
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        pass  # ended since


def _handles(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether ``process`` has a handler of its own for a signal (the mask of caught signals in Linux' /proc)."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    caught = next(line for line in lines if line.startswith("SigCgt:")).split()[1]
    return bool(int(caught, 16) >> (number - 1) & 1)


def compile_caches(environment: Mapping[str, str], temporary: Path | None = None) -> dict[str, str]:
    """The variables of ``CACHES`` that ``environment`` leaves open, with folders that exist and only this user enters.

    The folder is the same for every job of this user on the node, so that a job that starts again, or the next one,
    compiles nothing. ``temporary``: the node's folder for such files, by default that of ``TMPDIR``, or /tmp.
    """
    unset = {variable: name for variable, name in CACHES.items() if not environment.get(variable)}
    if not unset:
        return {}
    root = (temporary or Path(tempfile.gettempdir())) / f"megatron-remit-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if root.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        # Another user's: what lies there is code that would be run.
        root = Path(tempfile.mkdtemp(prefix="megatron-remit-", dir=temporary))
    for name in unset.values():
        (root / name).mkdir(exist_ok=True)
    return {variable: str(root / name) for variable, name in unset.items()}


if __name__ == "__main__":
    raise SystemExit(launch(sys.argv[1], sys.argv[2:]))
