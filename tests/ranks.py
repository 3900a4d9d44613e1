"""Run a function on several gloo ranks, or the training program, its tools and other programs, as a user would."""

import atexit
import os
import pickle
import random
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from threading import Timer

import psutil
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.zygote import Job

ROOT = Path(__file__).resolve().parents[1]


def environment():
    """That of this process, with one thread and without a GPU or the network."""
    return dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")


def run_ranks(world_size, function, *args):
    """Call ``function(rank, *args)`` in ``world_size`` processes of one gloo group; any failure fails the caller."""
    call = pickle.dumps((_rank, (world_size, free_port(), function, args)))
    run = run_job(world_size, call=call, path=tuple(sys.path), timeout=900)
    assert run.returncode == 0, run.failure()


def _rank(rank, world_size, port, function, args):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    try:
        function(rank, *args)
    finally:
        torch.distributed.destroy_process_group()


def free_port():
    """A port that nothing listens on, below those that the kernel hands out: gloo's connections, of which a run makes
    dozens, could otherwise take it before rank 0 listens."""
    handed_out_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(10_000, handed_out_from)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


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


def pretrain(ranks, *flags, cwd=None, check=True, timeout=420, module="megatron_remit.pretrain", torchrun=False):
    """``-m megatron_remit.pretrain`` with ``ranks`` processes of one thread each, under torchrun itself if asked."""
    with tempfile.TemporaryDirectory() as logs:
        flags = [*map(str, flags), "--tensorboard-dir", logs, "--tensorboard-log-interval", "1"]
        if torchrun:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            run = run_command(["python", *launcher, "-m", module, *flags], cwd=cwd, timeout=timeout)
        else:
            run = run_job(ranks, module=module, command_line=flags, cwd=cwd, timeout=timeout)
        events = EventAccumulator(logs)
        events.Reload()
        run.scalars = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    if check:
        assert run.returncode == 0, run.failure()
    return run


def run_command(command, cwd=None, timeout=420):
    """Run a program with one thread, its standard output and error in one text."""
    python, *words = map(str, command)
    if python == "python" and Path(words[0]).parent == ROOT / "tools":
        return run_job(0, script=words[0], command_line=words[1:], cwd=cwd, timeout=timeout)
    if python == "python" and words[0] == "-m" and words[1].startswith("tests."):
        return run_job(0, module=words[1], command_line=words[2:], cwd=cwd, timeout=timeout)
    words = [sys.executable if part == "python" else str(part) for part in command]
    done = subprocess.run(
        words,
        cwd=cwd or ROOT,
        env=environment(),
        timeout=timeout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Run(done.returncode, done.stdout)


class Zygote:
    """The process of tests/zygote.py, or of another module of its kind, started when it is first needed and ended with
    this one."""

    def __init__(self, module="tests.zygote", *arguments):
        self._module, self._arguments = module, [str(argument) for argument in arguments]
        self._process = self._connection = None

    def run(self, job, timeout):
        if self._process is None:
            self._connection, theirs = Pipe()
            command = [sys.executable, "-m", self._module, str(theirs.fileno()), *self._arguments]
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment(), pass_fds=[theirs.fileno()])
            theirs.close()
            atexit.register(self.stop)
        self._connection.send(job)
        if self._connection.poll(timeout):
            return self._connection.recv()
        self.stop()
        raise subprocess.TimeoutExpired(job.module or job.script or "the ranks", timeout)

    def kill_ranks(self):
        """Kill the processes of the job in progress, which ends with -9."""
        if self._process is not None:
            for child in psutil.Process(self._process.pid).children():
                child.kill()

    def stop(self):
        """Its ranks end with it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._connection.close()
            self._process = None


_zygote = Zygote()


@contextmanager
def killed_after(seconds):
    """A job that is started inside is killed (SIGKILL) once ``seconds`` have passed, if it still runs then."""
    timer = Timer(seconds, _zygote.kill_ranks)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def run_job(ranks, *, cwd=None, timeout=420, zygote=_zygote, **what):
    """Run ``ranks`` copies of a module, script or function (see :class:`tests.zygote.Job`)."""
    with tempfile.NamedTemporaryFile(suffix=".log") as output:
        job = Job(ranks, output.name, free_port(), str(cwd or ROOT), environment(), **what)
        code = zygote.run(job, timeout)
        return Run(code, Path(output.name).read_text(errors="replace"))
