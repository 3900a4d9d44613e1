"""Why ranks failed: what they said last, which of them was the first, and whether another try can help.

Runs on the host with the standard library alone (see ``megatron_remit.launch.job``).
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ASKED = "asked-node-"
"""How the file in a folder of logs begins that a node leaves once its ranks have been asked to end."""
# A line of these is said by a rank that waited for another one, or lost it: an echo of a failure.
_ECHO = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|remote process exited|watchdog|timed? ?out|DistBackendError"
    r"|DistNetworkError|DistStoreError|NCCL error|gloo",
    re.IGNORECASE,
)
# What hardware, network and file systems do to a program that is right: another try may go well.
_MACHINE = re.compile(
    r"nccl|cuda|cublas|out of memory|cannot allocate memory|\becc\b|\bxid\b|gloo|socket|network|DistStoreError"
    r"|stale file handle|input/output error|Errno 5\b|Errno 116\b|connection|broken pipe|timed? ?out|DataLoader worker",
    re.IGNORECASE,
)
_FULL_DISK = re.compile(r"no space left on device|disk quota exceeded|file write failed", re.IGNORECASE)
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt|Warning|Abort)\w*(?::|$)")
_LONGEST_LINE = 300
# A user's error of this project's programs, and argparse's.
_USER_ERROR = 2
# A disk with less room than this is full, whatever failed.
_PROBE_BYTES = 1 << 20


@dataclass(frozen=True)
class Failure:
    """The end of one rank."""

    rank: int
    node: str
    status: int
    """Its exit status; below 0 the signal that ended it."""
    line: str
    """The first error that it printed; empty if it printed none."""
    time: float
    """Seconds since the epoch."""

    def __str__(self) -> str:
        where = f"rank {self.rank}" + (f" on {self.node}" if self.node else "")
        if self.status < 0:
            return f"{where}: ended by signal {-self.status} ({_signal_name(-self.status)})" + self._and_said()
        return f"{where}: {self.line or f'exit status {self.status}, without an error line'}"

    def _and_said(self) -> str:
        return f": {self.line}" if self.line else ""

    @property
    def is_echo(self) -> bool:
        """Whether the rank failed because another one had, as far as can be seen."""
        return self.status == -signal.SIGTERM or bool(_ECHO.search(self.line))

    @property
    def is_of_the_program(self) -> bool:
        """Whether the program itself ended with an error that names neither hardware nor network."""
        return self.status > 0 and not _MACHINE.search(self.line)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def first_error(text: str) -> str:
    """The line of ``text`` that says what went wrong first: ``error: ...``, or the end of the first traceback."""
    lines = [line.strip() for line in text.splitlines()]
    in_traceback = False
    for line in lines:
        # Ranks of a program may put their number in front, as Megatron does.
        bare = re.sub(r"^(\[?rank\d+\]?:|\d+:)\s*", "", line)
        if re.match(r"(\S+: )?error: ", bare):
            return bare[:_LONGEST_LINE]
        if bare.startswith("Traceback "):
            in_traceback = True
        elif in_traceback and _EXCEPTION.match(bare):
            return bare[:_LONGEST_LINE]
    return ""


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Write what failed on a node. Nothing is written on a full disk; the job then goes by the exit status."""
    try:
        path.write_text(json.dumps([asdict(failure) for failure in failures], indent=1) + "\n", encoding="utf-8")
    except OSError:
        pass


def root_cause(folder: Path) -> Failure | None:
    """The failure that came first, of all that the nodes of one start wrote into ``folder``; None if none did."""
    found: list[Failure] = []
    for path in sorted(folder.glob("failed-node-*.json")):
        try:
            found += [Failure(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):
            continue  # cut short by what ended the node
    # Nodes see the end of their ranks at about the same time: what a rank says counts more than whose clock was first.
    return min(found, key=lambda one: (one.is_echo, one.time, one.rank), default=None)


def hopeless(cause: Failure | None, stepped: bool, run_dir: Path) -> str:
    """Why another try would end in the same way; empty if it may go well.

    ``cause`` is None if no rank could say anything: on a full disk there is neither a log nor a record. ``stepped``:
    whether this start made a step. Before the first one, an exception of the program that names neither hardware nor
    network is taken for the fault of its flags or files.
    """
    if cause is not None and cause.status == _USER_ERROR:
        return "an error of its flags or files"
    if (cause is not None and _FULL_DISK.search(cause.line)) or disk_is_full(run_dir):
        return f"no space in {run_dir}; make room and submit the same command again"
    if cause is not None and cause.is_of_the_program and not stepped:
        return "it failed before its first step"
    return ""


def disk_is_full(folder: Path) -> bool:
    """Whether ``folder`` has no place (or no quota) for a file of 1 MiB."""
    probe = folder / f".space-{os.getpid()}-{time.monotonic_ns()}"
    try:
        with probe.open("wb") as file:
            file.write(b"\1" * _PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    finally:
        try:
            probe.unlink()
        except OSError:
            pass
    return False
