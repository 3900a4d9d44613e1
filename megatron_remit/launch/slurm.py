"""Slurm: everything here, and only here, calls one of its commands or reads one of its variables.

Another scheduler is a file with these names in this one's place, and the header of the scripts in ``examples/``:

- ``Allocation``: what the job was given, and how it goes back into the queue
- ``step``: a command line that runs a command on the nodes
- ``node_rank``, ``node_name``: which of the nodes a process is on
- ``nodes_asked_for``: the number of nodes in the header of a script
- ``call``: one of Slurm's commands, patiently

Runs on the host with the standard library alone (see ``megatron_remit.launch.job``).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_remit.errors import UserError

PAUSES = (1, 2, 4, 8, 16)
"""Seconds between the tries of a command that Slurm did not hear."""
UNHEARD = ("Unable to contact slurm controller", "Socket timed out on send/recv operation")
"""What a command says then."""


def call(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands, again where Slurm did not hear it; stdout and stderr are captured.

    That is so in two cases, and a job that took either for Slurm's answer would end for nothing:

    - The controller restarts, moves to its backup, or has too much to do (``UNHEARD``).
    - The cores of the node are busy: munged hangs up on a client that is silent for two seconds behind its connection
      (MUNGE_SOCKET_TIMEOUT_MSECS), and the command, which has sent nothing yet, ends by SIGPIPE without a word.

    Args:
        options: of ``subprocess.run``.

    Raises:
        OSError: the command is not there.
    """
    for pause in (*PAUSES, None):
        done = subprocess.run(command, capture_output=True, text=True, **options)
        unheard = done.returncode == -signal.SIGPIPE or any(text in done.stderr for text in UNHEARD)
        if pause is None or not unheard:
            break
        time.sleep(pause)
    sys.stderr.write(done.stderr)
    return done


@dataclass(frozen=True)
class Container:
    """An image. ``mounts`` is a list ``HOST:INSIDE,...``, ``folder`` the one to work in. ``runtime`` is ``pyxis``, a
    plug-in of srun, else the program that runs the image on a node: ``apptainer`` or ``singularity``."""

    image: str
    mounts: str
    folder: str
    runtime: str = "pyxis"


@dataclass(frozen=True)
class Allocation:
    """What Slurm gave this job. The strings are empty outside a job, and ``restarts`` is 0 on the first start."""

    job: str = ""
    nodes: str = ""
    gpus_per_node: str = ""
    node_list: str = ""
    restarts: int = 0

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Allocation:
        return cls(
            job=environment.get("SLURM_JOB_ID", ""),
            nodes=environment.get("SLURM_NNODES", ""),
            gpus_per_node=environment.get("SLURM_GPUS_ON_NODE", ""),
            node_list=environment.get("SLURM_JOB_NODELIST", ""),
            restarts=int(environment.get("SLURM_RESTART_COUNT") or 0),
        )

    def hosts(self) -> list[str]:
        """The names of the nodes, the one with rank 0 first; none outside a job.

        Raises:
            UserError: ``scontrol`` is not there or does not know the nodes.
        """
        if not self.node_list:
            return []
        try:
            done = call(["scontrol", "show", "hostnames", self.node_list])
            done.check_returncode()
            return done.stdout.split()
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"no name of the first node ({error}); set MASTER_ADDR") from None

    def first_node(self) -> str:
        """The address of the node with rank 0, empty outside a job. Raises UserError as :meth:`hosts`."""
        return next(iter(self.hosts()), "")

    def port(self) -> str:
        """A port for the ranks to meet on: jobs that share a node must not meet on the same one."""
        return str(20000 + int(self.job or 0) % 10000)

    def state(self) -> str:
        """Slurm's word for the state of this job, such as ``RUNNING``; empty if Slurm no longer knows it."""
        command = ["squeue", "--noheader", f"--jobs={self.job}", "--format=%T"]
        return call(command).stdout.strip()

    def requeue(self) -> bool:
        """Put this job back into the queue; False if Slurm refuses, with its reason on stderr."""
        return call(["scontrol", "requeue", self.job]).returncode == 0

    def exclude(self, nodes: Sequence[str]) -> bool:
        """Keep this job off ``nodes`` from its next start on; False if Slurm refuses, with its reason on stderr.

        For a job that has just been requeued: Slurm changes the nodes of jobs that wait, and this one waits from then
        on, while its processes have KillWait seconds to end.
        """
        shown = call(["scontrol", "show", "job", self.job]).stdout
        # What the user excluded stays excluded.
        found = re.search(r"\bExcNodeList=(\S+)", shown)
        before = [] if found is None or found[1] == "(null)" else [found[1]]
        update = ["scontrol", "update", f"JobId={self.job}", f"ExcNodeList={','.join([*before, *nodes])}"]
        return call(update).returncode == 0


def step(command: Sequence[str], nodes: int, container: Container | None, setup: str = "") -> list[str]:
    """The command line that runs ``command`` as one task on each of ``nodes`` nodes, after the shell code ``setup``."""
    # A task starts one process per GPU, and these share all cores of the node: the task is bound to none of them.
    srun = ["srun", "--ntasks-per-node=1", "--cpu-bind=none", "--kill-on-bad-exit=1"]
    inside = list(command)
    if container is not None and container.runtime == "pyxis":
        srun += [f"--container-image={container.image}", f"--container-mounts={container.mounts}"]
        srun += [f"--container-workdir={container.folder}", "--no-container-mount-home"]
    elif container is not None:
        run = [container.runtime, "exec", "--nv", "--no-home", "--bind", container.mounts, "--pwd", container.folder]
        inside = [*run, container.image, *inside]
    if setup:
        # exec: srun's signals are then signals to the command.
        code = f"{{ {setup}\n}} || {{ echo 'error: SETUP failed' >&2; exit 2; }}\nexec \"$@\""
        inside = ["bash", "-c", code, "setup", *inside]
    return [*srun, f"--nodes={nodes}", f"--ntasks={nodes}", *inside]


def node_rank() -> str:
    """The rank of the node that this process runs on; 0 is the first node of the allocation."""
    return os.environ.get("SLURM_NODEID", "0")


def node_name() -> str:
    """Slurm's name of the node that this process runs on, else the machine's."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def nodes_asked_for(script: Path) -> str:
    """The number of nodes in the ``#SBATCH`` header of ``script``, empty if it asks for none."""
    found = re.search(r"^#SBATCH --nodes=(.*)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""
