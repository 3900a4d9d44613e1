"""A node that is gone, on a real Slurm: all its processes are killed at once, Slurm's own first, as without power.

It is the one on which the batch script of a job on two nodes runs.
"""

import os
import signal
import subprocess
import time

import psutil
import pytest

from tests.slurm.jobs import OFTEN_SAVED, ranks_of, slurm, starts_of, status_of, training

pytestmark = pytest.mark.timeout(1800)
STEPS = 40
# Slurm takes a silent node for lost after SlurmdTimeout: 30 seconds here, 300 by default. The pauses of the defaults,
# 60, 120 and 240 seconds, stand in the same ratio to it as these.
PAUSES = {"RETRY_SECONDS": 6}


def _processes_of(node):
    """A node's slurmd, the slurmstepds of its jobs, and what these have started; in this order."""
    daemons, steps, tasks = [], [], []
    for process in psutil.process_iter():
        try:
            command, environment = process.cmdline(), process.environ()
        except psutil.Error:
            continue
        if environment.get("SLURM_CONF") != os.environ["SLURM_CONF"]:
            continue
        if command[:4] == ["slurmd", "-D", "-N", node]:
            daemons.append(process)
        elif environment.get("SLURMD_NODENAME") == node:
            tasks.append(process)
            steps += [one for one in process.parents() if one.name() == "slurmstepd" and one not in steps]
    return daemons + steps + tasks


def _lose(node):
    found = _processes_of(node)
    assert len(found) > 3, found
    for process in found:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            pass


@pytest.fixture
def repair():
    """Starts the slurmd of a node again. ``with_cluster.sh`` ends it."""

    def start(node):
        command = ["slurmd", "-D", "-N", node, "-f", os.environ["SLURM_CONF"]]
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        end = time.monotonic() + 120
        while slurm("sinfo", "--noheader", f"--nodes={node}", "--format=%T") not in ("idle", "mixed", "allocated"):
            assert time.monotonic() < end, slurm("sinfo", "--long", "--Node")
            time.sleep(0.5)

    return start


def test_a_job_on_two_nodes_outlives_the_loss_of_its_first(slurm_cluster, repair):
    job = slurm_cluster.submit("lost", "--nodes=2", **OFTEN_SAVED | PAUSES | {"TRAIN_ITERS": STEPS})
    training(job, "0-0")
    ranks = ranks_of(job)
    _lose("n1")
    job.wait(lambda: job.state() == "PENDING", "requeue after the loss of n1")
    assert "down" in slurm("sinfo", "--noheader", "--nodes=n1", "--format=%T")
    assert not any(rank.is_running() for rank in ranks.values()), "a rank outlived its job"
    repair("n1")
    job.wait_completed()
    first, second = starts_of(job)
    assert first == 0 and second >= 10 and status_of(job)["restarts"] == 1
    assert job.text().splitlines()[-1].endswith(f"finished at step {STEPS} of {STEPS}: {job.run_dir}/hf")
