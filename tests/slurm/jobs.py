"""Submit examples/remit_olmo1b.sh to the tests' Slurm as a user does, wait for it, read what it leaves."""

import json
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_remit import heartbeat
from megatron_remit.launch.slurm import call
from tests.ranks import ROOT

SCRIPT = ROOT / "examples/remit_olmo1b.sh"
# The paper's settings are for a cluster; these are for two cores. Everything else stays as the script has it.
TINY = {
    "SEQ_LENGTH": "32",
    "GLOBAL_BATCH_SIZE": "8",
    "MICRO_BATCH_SIZE": "2",
    "REFERENCE_MICRO_BATCH_SIZE": "4",
    "TRAIN_ITERS": "150",
    "EVAL_INTERVAL": "30",
    "EVAL_ITERS": "1",
    "GPUS_PER_NODE": "1",
    "LR": "3e-3",
    "WARMUP_ITERS": "0",
    # Both virtual nodes are this machine, and their names are known to Slurm only.
    "MASTER_ADDR": "127.0.0.1",
}
MORE = 12
"""Steps that a start makes before something happens to it: a checkpoint of ``OFTEN_SAVED``, and some that are lost."""
OFTEN_SAVED = {"SAVE_INTERVAL": 10, "EVAL_INTERVAL": 1000}


@dataclass(frozen=True)
class Inputs:
    """What a user brings: two Hugging Face folders and a corpus of their tokenizer."""

    base: Path
    rl: Path
    corpus: Path


@dataclass
class Job:
    """A submitted job: its run folder and its log."""

    number: str
    run_dir: Path
    log: Path

    def state(self):
        """Slurm's state word, such as PENDING or COMPLETED."""
        shown = slurm("scontrol", "show", "job", self.number, "--oneliner")
        return dict(pair.split("=", 1) for pair in shown.split() if "=" in pair)["JobState"]

    def text(self):
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, condition, what, seconds=420):
        """Until ``condition()`` is true; a job that fails meanwhile, or takes too long, fails the test with its log."""
        end = time.monotonic() + seconds
        while not condition():
            state = self.state()
            assert state in ("PENDING", "RUNNING", "COMPLETED", "COMPLETING"), f"{what}: {state}\n{self.text()[-4000:]}"
            assert time.monotonic() < end, f"no {what} in {seconds} s\n{self.text()[-4000:]}"
            time.sleep(0.25)

    def wait_completed(self):
        self.wait(lambda: self.state() == "COMPLETED", "end of the job")

    def scalars(self, tag):
        """TensorBoard's (step, value) pairs in the order in which they were written, over all restarts."""
        pairs = []
        for file in sorted(self.run_dir.glob("tensorboard/events.*"), key=lambda path: path.stat().st_mtime):
            events = EventAccumulator(str(file))
            events.Reload()
            if tag in events.Tags()["scalars"]:
                pairs += [(event.step, event.value) for event in events.Scalars(tag)]
        return pairs


@dataclass
class Cluster:
    """Submits the script as a user does."""

    inputs: Inputs
    folder: Path

    def environment(self, name, **overrides):
        paths = {"BASE_HF": self.inputs.base, "RL_HF": self.inputs.rl, "CORPUS": self.inputs.corpus}
        settings = TINY | paths | {"RUN_DIR": self.folder / name, "PYTHON": sys.executable} | overrides
        kept = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
        return kept | {key: str(value) for key, value in settings.items() if value is not None}

    def submit(self, name, *flags, **overrides):
        log = self.folder / f"{name}.log"
        command = ["sbatch", "--parsable", "--nodes=1", f"--output={log}", *flags, SCRIPT]
        number = slurm(*command, env=self.environment(name, **overrides))
        return Job(number, self.folder / name, log)


def slurm(*command, env=None):
    """One of Slurm's commands, run in the repository's root; what it prints."""
    done = call([str(word) for word in command], cwd=ROOT, env=env)
    assert done.returncode == 0, (command, done.returncode, done.stderr)
    return done.stdout.strip()


def ranks_of(job):
    """The training processes of a job, by rank."""
    found = {}
    for process in psutil.process_iter():
        try:
            command, environment = process.cmdline(), process.environ()
        except psutil.Error:
            continue
        if "megatron_remit.pretrain" in " ".join(command) and environment.get("SLURM_JOB_ID") == job.number:
            if "RANK" in environment and str(job.run_dir / "checkpoints") in command:
                found[int(environment["RANK"])] = process
    return found


def status_of(job):
    """What ``status.json`` says of a job."""
    path = job.run_dir / "status.json"
    return json.loads(path.read_text()) if path.exists() else {}


def incidents(job):
    """The failures of a run."""
    return json.loads((job.run_dir / "failures.json").read_text())["incidents"]


def starts_of(job):
    """The step from which each start went on."""
    return [int(step) for step in re.findall(r"training from step (\d+) to", job.text())]


def training(job, start):
    """Wait until the start ``RESTART-ATTEMPT`` of a job has made ``MORE`` steps; its rank 0."""

    def stepping():
        beat = heartbeat.read(job.run_dir / "heartbeat.json")
        begun = status_of(job).get("logs", "").endswith(f"{job.number}-{start}")
        return begun and beat is not None and beat.step >= starts_of(job)[-1] + MORE

    job.wait(stepping, f"{MORE} steps in start {start}")
    return ranks_of(job)[0]
