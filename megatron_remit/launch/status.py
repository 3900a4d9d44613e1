"""What a job says of itself: lines in its log, and ``RUN_DIR/status.json`` for programs.

Runs on the host with the standard library alone (see ``megatron_remit.launch.job``).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from megatron_remit.launch.history import write_small

FORMAT = 1


class Status:
    """The state of a run in ``RUN_DIR/status.json``.

    The file has ``state``, ``line`` (the same in words, which is the last line of the log when the job has ended),
    ``time`` (UTC), ``job``, ``restarts``, ``step`` (of the last checkpoint), ``steps`` (of the run), and where they are
    known ``reached`` (the last step made), ``rank``, ``node``, ``error`` and ``logs``. States:

    - ``running``: importing, training or exporting; ``retrying``: waiting before it trains again
    - ``finished``: trained and exported
    - ``preempted``, ``failed`` and ``hung`` with ``requeued`` true: it is back in the queue
    - ``failed`` and ``hung`` with ``requeued`` false: it is over, and submitting it again would continue
    - ``ended``: cancelled, timed out or requeued by Slurm itself
    """

    def __init__(self, run_dir: Path, steps: int, job: str, restarts: int) -> None:
        self._path = run_dir / "status.json"
        self._fixed = {"job": job, "restarts": restarts, "steps": steps}

    def write(self, state: str, line: str, step: int, **more: Any) -> None:
        """Say ``line`` in the log, and write the state."""
        say(line)
        self.record(state, line, step, **more)

    def record(self, state: str, line: str, step: int, **more: Any) -> None:
        """Write the state alone. A full disk does not end a job."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        content = {"format": FORMAT, "state": state, "line": line, "time": now, "step": step, **self._fixed, **more}
        write_small(self._path, json.dumps(content, indent=1) + "\n")


def say(text: str) -> None:
    """A line of the job itself in its log. Unbuffered, so that it stands between the lines of the commands, and safe in
    a signal handler."""
    os.write(1, f"> {time.strftime('%H:%M:%S', time.gmtime())} {text}\n".encode())
