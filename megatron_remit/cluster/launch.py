"""torchrun for a preemptible Slurm job: ``srun python -m megatron_remit.cluster.launch <torchrun's arguments>``.

Slurm announces preemption and the time limit with SIGTERM or SIGUSR1. Megatron's ``--exit-signal-handler`` saves after
the current step when a *worker* gets SIGTERM. torchrun in between is in the way: it answers SIGTERM by ending its
workers, with SIGKILL after 30 seconds, which is less than many a checkpoint takes. So torchrun runs here as a child that
ignores both signals, and this process passes SIGTERM to the workers and then waits for as long as they need.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

import psutil

ANNOUNCEMENTS = (signal.SIGTERM, signal.SIGUSR1)
# A worker that still starts up ignores the signal: it is sent again until torchrun has ended.
REPEAT_SECONDS = 5.0
# torchrun's own list (--signals-to-handle) without SIGTERM.
_ENDS_TORCHRUN = "SIGINT,SIGHUP,SIGQUIT"


def launch(torchrun_arguments: Sequence[str]) -> int:
    """Run torchrun with ``torchrun_arguments`` and return its exit status.

    The node's rank is Slurm's (``SLURM_NODEID``), so rank 0 is on the first node of the allocation, whose address
    ``--master-addr`` gives.
    """
    asked_to_stop = False

    def remember(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    # A child inherits "ignored" but not a handler: between the two settings, torchrun starts with both ignored, and so
    # do its workers, until Megatron sets its own handler for SIGTERM.
    for number in ANNOUNCEMENTS:
        signal.signal(number, signal.SIG_IGN)
    torchrun = subprocess.Popen([
        sys.executable, "-m", "torch.distributed.run", "--signals-to-handle", _ENDS_TORCHRUN,
        "--node-rank", os.environ.get("SLURM_NODEID", "0"), *torchrun_arguments,
    ])
    for number in ANNOUNCEMENTS:
        signal.signal(number, remember)
    announced = False
    while True:
        try:
            return torchrun.wait(timeout=REPEAT_SECONDS if announced else 0.5)
        except subprocess.TimeoutExpired:
            if asked_to_stop:
                if not announced:
                    print("> asked to stop: the workers save a checkpoint after this step", flush=True)
                announced = True
                _ask_workers(torchrun.pid)


def _ask_workers(torchrun: int) -> None:
    try:
        for worker in psutil.Process(torchrun).children():
            worker.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        pass  # ended since


if __name__ == "__main__":
    raise SystemExit(launch(sys.argv[1:]))
