"""A rank ends with the torchrun that started it. Standard library only.

torchrun ends its ranks when it is asked to end. When it is killed outright it cannot: its ranks would go on training
into the folder of a run that its owner takes for ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# torchrun, and what else starts ranks through it, sets this for each.
_STARTED_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"
_POLL_SECONDS = 1.0


def end_with_torchrun() -> None:
    """From now on this process is killed when the torchrun that started it ends: by the kernel when its parent ends,
    and within about a second when torchrun ends above a wrapper (``--no-python wrapper.sh``) that lives on. Without
    torchrun nothing changes.

    SIGKILL, since Megatron answers SIGTERM by a checkpoint, for which the other ranks of the run are gone. A signal to
    torchrun or to the ranks themselves works as before, Slurm's too: this is about a torchrun that is no more. Linux
    only.

    Raises:
        SystemExit: torchrun ended before this call.
    """
    if _STARTED_BY_TORCHRUN not in os.environ or not Path("/proc/self").exists():
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    torchrun = _torchrun()
    if torchrun is None:
        raise SystemExit("torchrun has ended; this rank ends too")
    if torchrun != os.getppid():
        threading.Thread(target=_end_after, args=(torchrun,), name="torchrun", daemon=True).start()


def _end_after(torchrun: int) -> None:
    while _torchrun() == torchrun:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _torchrun() -> int | None:
    """The process that started this rank; None once it has ended.

    Wrappers between the two have torchrun's variable too; torchrun itself is the first ancestor without it, and a
    Python interpreter. What an orphan comes to, init or a supervisor, is none. A process whose variables are another
    user's secret (sudo) counts as a wrapper.
    """
    run, process = os.environ[_STARTED_BY_TORCHRUN], os.getppid()
    try:
        while process > 0:
            variables = _variables(process)
            if variables is None or f"{_STARTED_BY_TORCHRUN}={run}".encode() not in variables:
                if _is_python(process):
                    return process
                if variables is not None:
                    return None
            process = _parent(process)
    except OSError:
        pass  # an ancestor ended meanwhile
    return None


def _variables(process: int) -> list[bytes] | None:
    try:
        return Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except PermissionError:
        return None


def _is_python(process: int) -> bool:
    command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    return b"python" in os.path.basename(command[0])


def _parent(process: int) -> int:
    # The name of the program, in parentheses, may hold spaces and parentheses of its own.
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
