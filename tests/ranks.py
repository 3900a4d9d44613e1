"""Run a function on several gloo ranks, or the training program under torchrun."""

import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[1]


def run_ranks(world_size, function, *args):
    """Call ``function(rank, *args)`` in ``world_size`` processes of one gloo group; any failure fails the caller."""
    torch.multiprocessing.spawn(_rank, (world_size, free_port(), function, args), nprocs=world_size)


def _rank(rank, world_size, port, function, args):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size))
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    try:
        function(rank, *args)
    finally:
        torch.distributed.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Run:
    """What a run of a program left behind."""

    returncode: int
    output: str
    scalars: dict[str, list[float]] = field(default_factory=dict)
    """TensorBoard's values by tag, one per step. (Megatron's line on stdout averages the first two steps.)"""

    def failure(self):
        """The first traceback, or the end of the output."""
        lines = self.output.splitlines()
        starts = [number for number, line in enumerate(lines) if "Traceback" in line or "error: " in line]
        first = starts[0] if starts else -40
        return "\n".join(lines[first : first + 60] if starts else lines[first:])

    def series(self, name):
        """One logged figure's values, one per step."""
        return self.scalars[name]


def pretrain(ranks, *flags, cwd=None, check=True, timeout=420, module="megatron_remit.pretrain"):
    """``torchrun -m megatron_remit.pretrain`` with ``ranks`` processes of one thread each."""
    command = [
        "python",
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "-m",
        module,
        *map(str, flags),
    ]
    with tempfile.TemporaryDirectory() as logs:
        command += ["--tensorboard-dir", logs, "--tensorboard-log-interval", "1"]
        run = run_command(command, cwd=cwd, timeout=timeout)
        events = EventAccumulator(logs)
        events.Reload()
        run.scalars = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    if check:
        assert run.returncode == 0, run.failure()
    return run


def run_command(command, cwd=None, timeout=420):
    """Run a program with one thread, its standard output and error in one text."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    words = [sys.executable if part == "python" else str(part) for part in command]
    done = subprocess.run(
        words,
        cwd=cwd or ROOT,
        env=environment,
        timeout=timeout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Run(done.returncode, done.stdout)
