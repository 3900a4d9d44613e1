"""examples/remit_olmo1b.sh on a real Slurm: from Hugging Face to Hugging Face, preempted or not, on one node or two.

Three jobs serve most tests. Two start at once, each on its own node: one runs through, the other is preempted twice,
once as ``--signal=B:USR1@...`` does it before the time limit (the batch script alone gets the signal) and once as
preemption with a grace time does it (the tasks alone get SIGTERM). The third trains on both nodes.
"""

import re
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.slurm.jobs import TINY, slurm

# The three jobs take minutes, on a busy machine many; each wait has a limit of its own.
pytestmark = pytest.mark.timeout(2400)
STEPS = int(TINY["TRAIN_ITERS"])
SERIES = ("lm loss", "remit loss", "reference nll", "weight std", "grad-norm", "learning-rate")


@pytest.fixture(scope="module")
def jobs(slurm_cluster):
    through = slurm_cluster.submit("through")
    preempted = slurm_cluster.submit("preempted", STAGE=slurm_cluster.folder / "local")
    for signal in (["--batch", "--signal=USR1"], ["--signal=TERM"]):
        saved = _requeues(preempted)
        target = (saved[-1] if saved else 0) + 10
        preempted.wait(lambda step=target: _steps(preempted) >= step, f"step {target}")
        slurm("scancel", *signal, preempted.number)
        preempted.wait(lambda before=saved: len(_requeues(preempted)) > len(before), "requeue")
    through.wait_completed()
    preempted.wait_completed()
    two_nodes = slurm_cluster.submit("two_nodes", "--nodes=2")
    two_nodes.wait_completed()
    return {"through": through, "preempted": preempted, "two nodes": two_nodes}


def _steps(job):
    """The last step in the log."""
    lines = [line for line in job.text().splitlines() if " iteration " in line and "consumed samples" in line]
    return int(lines[-1].split(" iteration ")[1].split("/")[0]) if lines else 0


def _requeues(job):
    """The steps at which the job went back into the queue."""
    return [int(step) for step in re.findall(r"requeued at step (\d+)", job.text())]


def test_the_exported_model_loads_in_transformers_and_is_the_trained_one(jobs, slurm_cluster):
    folder = jobs["through"].run_dir / "hf"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer("abc de", return_tensors="pt").input_ids
    assert model.generate(tokens, max_new_tokens=3, do_sample=False).shape[1] > tokens.shape[1]
    before = load_file(slurm_cluster.inputs.base / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert not torch.equal(tensor.float(), before[name]), f"{name} has not been trained"


def test_the_schedule_is_the_papers(jobs):
    rates = [value for _, value in jobs["through"].scalars("learning-rate")]
    assert len(rates) == STEPS
    assert max(rates) == rates[0] == pytest.approx(float(TINY["LR"]), rel=1e-2)
    assert sorted(rates, reverse=True) == rates and rates[-1] == pytest.approx(1e-7, rel=1e-3)


def test_a_job_preempted_twice_continues_as_if_nothing_had_happened(jobs):
    preempted, through = jobs["preempted"], jobs["through"]
    first, second = _requeues(preempted)
    assert 0 < first < second < STEPS
    for tag in SERIES:
        expected = through.scalars(tag)
        assert [step for step, _ in expected] == list(range(1, STEPS + 1)), tag
        assert preempted.scalars(tag) == expected, tag
    assert preempted.text().count(" GB of ") == 2, "corpus and reference were copied once, in three starts"
    ours, theirs = (load_file(job.run_dir / "hf/model.safetensors") for job in (preempted, through))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_jobs_that_start_at_once_import_each_model_once(jobs):
    """The cluster's first jobs: those of test_troubled_jobs.py, behind this file, find the imports made."""
    logs = [jobs[name].text() for name in ("through", "preempted")]
    assert sum(text.count("\nimported /") for text in logs) == 2
    assert any("imported by another job" in text for text in logs)
    assert "importing" not in jobs["two nodes"].text()


def test_two_nodes_train_as_one(jobs):
    assert "2 x 1 GPUs" in jobs["two nodes"].text()
    for tag in ("lm loss", "remit loss", "reference nll"):
        one, two = ([value for _, value in jobs[name].scalars(tag)] for name in ("through", "two nodes"))
        # bf16, and the ranks add in another order.
        assert two[:20] == pytest.approx(one[:20], rel=2e-3), tag
    assert (jobs["two nodes"].run_dir / "hf/config.json").is_file()


def test_a_cancelled_job_is_not_requeued(slurm_cluster):
    job = slurm_cluster.submit("cancelled")
    job.wait(lambda: job.state() == "RUNNING", "start")
    slurm("scancel", job.number)
    for _ in range(240):
        if not slurm("squeue", "--noheader", f"--jobs={job.number}"):
            break
        time.sleep(0.25)
    assert job.state() == "CANCELLED"
    assert "requeued at" not in job.text()


def test_a_second_job_in_the_same_run_folder_is_refused(slurm_cluster, jobs):
    first = slurm_cluster.submit("shared")
    first.wait(lambda: (first.run_dir / "job.lock").exists(), "start")
    second = slurm_cluster.submit("second", RUN_DIR=first.run_dir)
    for _ in range(240):
        if "another job is running there" in second.text():
            break
        time.sleep(0.25)
    assert f"RUN_DIR={first.run_dir}: another job is running there" in second.text()
    slurm("scancel", first.number)
