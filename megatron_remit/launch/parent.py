"""A rank ends with the torchrun that started it. Standard library only.

torchrun ends its ranks when it is asked to end. When it is killed outright it cannot: its ranks would go on training
into the folder of a run that its owner takes for ended.
"""

import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# torchrun, and what else starts ranks through it, sets this for each.
_STARTED_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"


def end_with_torchrun() -> None:
    """From now on the kernel kills this process when torchrun, its parent, ends. Without torchrun nothing changes.

    SIGKILL, since Megatron answers SIGTERM by a checkpoint, for which the other ranks of the run are gone. A signal to
    torchrun or to the ranks themselves works as before, Slurm's too: this is about a parent that is no more. Linux
    only.

    Raises:
        SystemExit: torchrun ended before this call.
    """
    if _STARTED_BY_TORCHRUN not in os.environ or not Path("/proc/self").exists():
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if not _is_python(os.getppid()):
        raise SystemExit("torchrun has ended; this rank ends too")


def _is_python(process: int) -> bool:
    """Whether the process is a Python interpreter, as torchrun is. An orphan's new parent is init or a supervisor."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"python" in os.path.basename(command[0])
