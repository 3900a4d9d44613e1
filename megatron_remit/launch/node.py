"""torchrun for a preemptible job: ``srun python -m megatron_remit.launch.node <torchrun's arguments>``.

Slurm announces preemption and the time limit with SIGTERM or SIGUSR1. Megatron's ``--exit-signal-handler`` saves after
the current step when a *worker* gets SIGTERM. torchrun in between is in the way: it answers SIGTERM by ending its
workers, with SIGKILL after 30 seconds, which is less than many checkpoints take. So torchrun runs here as a child
that ignores both signals, and this process passes SIGTERM to the workers and then waits for as long as they need.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import psutil

from megatron_remit.launch.caches import compile_caches
from megatron_remit.launch.slurm import node_rank

ANNOUNCEMENTS = (signal.SIGTERM, signal.SIGUSR1)
POLL_SECONDS = 0.5
# torchrun's own list (--signals-to-handle) without SIGTERM.
_ENDS_TORCHRUN = "SIGINT,SIGHUP,SIGQUIT"


def launch(torchrun_arguments: Sequence[str]) -> int:
    """Run torchrun with ``torchrun_arguments`` and return its exit status.

    The node's rank is the scheduler's (``slurm.node_rank``), so rank 0 is on the first node of the allocation, whose
    address ``--master-addr`` gives.
    """
    asked_to_stop = False

    def remember(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    # A child inherits "ignored" but not a handler: between the two settings, torchrun starts with both ignored, and so
    # do its workers, until Megatron sets its own handler for SIGTERM.
    for number in ANNOUNCEMENTS:
        signal.signal(number, signal.SIG_IGN)
    command = [sys.executable, "-m", "torch.distributed.run", "--signals-to-handle", _ENDS_TORCHRUN]
    environment = {**os.environ, **compile_caches(os.environ)}
    torchrun = subprocess.Popen([*command, "--node-rank", node_rank(), *torchrun_arguments], env=environment)
    for number in ANNOUNCEMENTS:
        signal.signal(number, remember)
    asked: set[int] = set()
    while True:
        try:
            return torchrun.wait(timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if asked_to_stop:
                _ask_workers(torchrun.pid, asked)


def _ask_workers(torchrun: int, asked: set[int]) -> None:
    """Send SIGTERM to each worker once, as soon as it handles it.

    Before that, while it starts up, the signal would be lost. A second one could meet Python at its exit, when handlers
    are gone and SIGTERM ends a process whose checkpoint is saved as if it had failed.
    """
    try:
        ready = [worker for worker in psutil.Process(torchrun).children() if _handles_sigterm(worker.pid)]
        for worker in ready:
            if worker.pid not in asked:
                asked.add(worker.pid)
                print(f"> asked worker {worker.pid} to save a checkpoint after this step and to end", flush=True)
                worker.send_signal(signal.SIGTERM)
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        pass  # ended since


def _handles_sigterm(process: int) -> bool:
    """Whether ``process`` has a handler for SIGTERM of its own (the mask of caught signals in Linux' /proc)."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt:")).split()[1]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


if __name__ == "__main__":
    raise SystemExit(launch(sys.argv[1:]))
