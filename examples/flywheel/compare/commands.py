"""Runs the commands of a stage with the threads and the log that belong to it."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[3]
HERE = PROJECT / "examples/flywheel"
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class StageFailed(RuntimeError):
    """A command failed, or a model did not become what it must; the log says why."""


def _end_with_parent() -> None:
    """In a new process: SIGTERM comes when the comparison is gone, however it ended."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Commands:
    """What a stage runs; each command and its output are added to the log."""

    def __init__(self, threads: int, log: Path) -> None:
        self._threads, self.log = threads, log

    def tool(self, name: str, *flags: str) -> None:
        """One of ``tools/``. Raises StageFailed."""
        self.python(PROJECT / f"tools/{name}.py", *flags)

    def torchrun(self, *words: str) -> None:
        """One process of torchrun. Raises StageFailed."""
        self._run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", *words])

    def python(self, script: Path, *words: str) -> None:
        """A script. Raises StageFailed."""
        self._run([sys.executable, str(script), *words])

    def _run(self, command: list[str]) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": f"{self._threads}", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore",
            "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        }  # fmt: skip
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            print(f"$ {' '.join(command)}", file=log, flush=True)
            done = subprocess.run(
                command, cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=_end_with_parent,
            )  # fmt: skip
        if done.returncode:
            raise StageFailed(f"status {done.returncode}: {' '.join(command[:4])} ...; the log is {self.log}")
