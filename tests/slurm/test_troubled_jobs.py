"""What goes wrong on a cluster, on a real Slurm: a rank is killed, one stops, a node is lost, the disk is full.

One job goes through the first three, one after the other, while another one fills its disk on the other node, and goes
on when there is room. Both end with the same model.
"""

import dataclasses
import os
import re
import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.slurm.jobs import MORE, OFTEN_SAVED, incidents, ranks_of, slurm, starts_of, status_of, training

pytestmark = pytest.mark.timeout(1800)
STEPS = 150
FAST = OFTEN_SAVED | {"TRAIN_ITERS": STEPS, "RETRY_SECONDS": 1}


def node_of(job):
    shown = slurm("scontrol", "show", "job", job.number, "--oneliner")
    return re.search(r" BatchHost=(\S+)", shown)[1]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of a few megabytes, which can grow."""
    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path_factory.mktemp("small")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def jobs(slurm_cluster, small_disk):
    """The two jobs, when both have finished, and the nodes that the troubled one was on."""
    own = FAST | {"RUN_DIR": small_disk / "run", "IMPORT_DIR": slurm_cluster.folder / "imported"}
    full = slurm_cluster.submit("full", **own)
    full = dataclasses.replace(full, run_dir=small_disk / "run")
    troubled = slurm_cluster.submit("troubled", **FAST | {"HANG_MINUTES": 0.3})
    for start in ("0-0", "0-1"):
        training(troubled, start).send_signal(signal.SIGKILL)
    nodes = [node_of(troubled)]
    _until(lambda: full.state() == "FAILED", full)
    refused = dict(status_of(full), log=full.text(), tracker=_tracker(full))
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    again = slurm_cluster.submit("full", **own)
    training(troubled, "1-0").send_signal(signal.SIGSTOP)
    nodes.append(node_of(troubled))
    training(troubled, "2-0")
    slurm("scontrol", "update", f"NodeName={nodes[1]}", "State=DOWN", "Reason=test")
    troubled.wait(lambda: troubled.state() == "PENDING", "requeue")
    _until(lambda: _is_back(nodes[1]), troubled)
    for job in (again, troubled):
        job.wait_completed()
    return troubled, nodes, full, refused


def _until(condition, job, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, job.text()[-4000:]
        time.sleep(0.25)


def _is_back(node):
    """Asks for a lost node's return. That is refused, rightly, where it came back by itself since it was looked at."""
    if "down" not in slurm("sinfo", "--noheader", f"--nodes={node}", "--format=%T"):
        return True
    subprocess.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"], check=False, capture_output=True)
    return False


def _tracker(job):
    return int((job.run_dir / "checkpoints/latest_checkpointed_iteration.txt").read_text())


def test_a_killed_rank_is_tried_again_and_after_the_second_time_on_another_node(jobs):
    job, (first, second), _, _ = jobs
    killed = [one for one in incidents(job) if one["kind"] == "failed"]
    assert [(one["rank"], one["node"]) for one in killed] == [(0, first), (0, first)]
    assert re.search(rf"rank 0 on {first}: ended by signal 9 \(SIGKILL\) .*; try 1 of 3 begins in 1 s", job.text())
    assert f"> rank 0 on {first}: ended by signal 9 (SIGKILL)" in job.text()
    assert f"{first}: failed too often (NODE_FAILURES)" in job.text()
    assert second != first
    steps = starts_of(job)
    assert steps[0] == 0 < steps[1] < steps[2]  # each from the last checkpoint


def test_a_run_that_hangs_is_ended_and_requeued(jobs):
    job, _, _, _ = jobs
    hung = [one for one in incidents(job) if one["kind"] == "hung"]
    assert len(hung) == 1
    step = hung[0]["reached"]
    assert step >= starts_of(job)[2] + MORE
    assert re.search(
        rf"> \S+ hung at step {step}: no step for 0.3 minutes after step {step}: requeued at step \d+ of {STEPS}",
        job.text(),
    )


def test_the_job_of_a_lost_node_goes_on_elsewhere_and_to_the_end(jobs):
    job, _, full, _ = jobs
    assert status_of(job)["restarts"] == 3
    assert job.text().splitlines()[-1].endswith(f"finished at step {STEPS} of {STEPS}: {job.run_dir}/hf")
    assert (status_of(job)["state"], status_of(job)["step"]) == ("finished", STEPS)
    # Both were interrupted, each in its own way, and both are the same run.
    ours, theirs = (load_file(one.run_dir / "hf/model.safetensors") for one in (job, full))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_full_disk_ends_the_job_at_once_and_costs_no_checkpoint(jobs):
    _, _, full, refused = jobs
    assert refused["state"] == "failed" and refused["requeued"] is False
    assert f"no space in {full.run_dir}; make room and submit the same command again" in refused["line"]
    assert refused["log"].splitlines()[-1] == refused["line"]
    assert "begins in" not in refused["log"]
    assert 0 < refused["tracker"] == refused["step"] < STEPS
    assert f"training from step {refused['tracker']} to {STEPS}" in full.text()
    assert (status_of(full)["state"], status_of(full)["step"]) == ("finished", STEPS)


def test_a_rank_that_is_killed_on_one_of_two_nodes_ends_the_others_too_and_all_go_on(slurm_cluster, jobs):
    """``jobs``: behind the others, which need a node each. Two ranks on each node."""
    four = {"TRAIN_ITERS": 40, "GPUS_PER_NODE": 2, "REFERENCE_MICRO_BATCH_SIZE": 2}
    job = slurm_cluster.submit("two_nodes_troubled", "--nodes=2", **FAST | four)
    training(job, "0-0")
    ranks = ranks_of(job)
    assert sorted(ranks) == [0, 1, 2, 3]
    assert [ranks[rank].environ()["LOCAL_RANK"] for rank in sorted(ranks)] == ["0", "1", "0", "1"]
    assert len({ranks[rank].environ()["SLURMD_NODENAME"] for rank in (0, 1)}) == 1
    ranks[3].send_signal(signal.SIGKILL)
    job.wait_completed()
    (killed,) = incidents(job)
    assert (killed["kind"], killed["rank"]) == ("failed", 3)
    ended = rf"rank 3 on {killed['node']}: ended by signal 9 \(SIGKILL\) .*; try 1 of 3 begins in 1 s"
    assert re.search(ended, job.text()), job.text()
    assert not any(rank.is_running() for rank in ranks.values()), "each is a new one"
    first, second = starts_of(job)
    assert first == 0 < second and job.text().splitlines()[-1].endswith(f"finished at step 40 of 40: {job.run_dir}/hf")
