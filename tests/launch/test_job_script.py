"""The way of a job with commands that stand in for Slurm's: what runs in which order, and how a job ends.

tests/slurm has the same on a real Slurm, with a model that trains.
"""

import fcntl
import os
import shutil
import signal
from contextlib import contextmanager

import pytest

from tests.launch.stand_in import StandIn, end, wait_for
from tests.launch.test_retries import KILLED, fail


@pytest.fixture
def slurm(tmp_path):
    return StandIn(tmp_path)


def test_from_import_to_export(slurm):
    status, output = slurm.run()
    run = slurm.folder / "run"
    assert status == 0
    assert output.splitlines() == [
        f"> TIME importing {slurm.folder}/base",
        f"> TIME importing {slurm.folder}/rl",
        "> TIME training from step 0 to 9 on 2 x 1 GPUs",
        f"> TIME exporting step 9 to {run}/hf",
        f"> TIME finished at step 9 of 9: {run}/hf",
    ]
    assert slurm.commands() == [
        "scontrol show hostnames first,second",
        *("1 plan_run", "1 import_hf", "1 import_hf", "2 megatron_remit.launch.node", "1 export_hf"),
    ]
    assert "--master-addr first --master-port 20077" in (slurm.folder / "notes/commands").read_text()


def test_what_is_done_is_not_done_again(slurm):
    slurm.run()
    (slurm.folder / "notes/commands").unlink()
    status, output = slurm.run()
    assert (status, output) == (0, f"> TIME finished at step 9 of 9: {slurm.folder}/run/hf\n")
    assert slurm.commands() == ["scontrol show hostnames first,second"]


def test_a_run_that_was_made_longer_is_exported_again(slurm):
    slurm.run()
    status, output = slurm.run(TRAIN_ITERS=12, REACHED=12)
    assert status == 0 and f"> TIME exporting step 12 to {slurm.folder}/run/hf\n" in output
    assert slurm.commands().count("1 export_hf") == 2
    slurm.run(TRAIN_ITERS=12)
    assert slurm.commands().count("1 export_hf") == 2


@pytest.mark.parametrize("lost", ["job.json", "hf"])
def test_an_export_of_an_unknown_step_and_one_that_is_gone_are_made_again(lost, slurm):
    slurm.run()
    (slurm.folder / "run" / lost).rename(slurm.folder / "lost")
    status, output = slurm.run()
    assert status == 0 and "exporting step 9" in output and "training" not in output


def test_a_run_that_was_begun_anew_is_exported_again(slurm):
    slurm.run()
    shutil.rmtree(slurm.folder / "run/checkpoints")
    status, output = slurm.run()
    assert status == 0 and "exporting step 9" in output


def test_a_run_that_has_begun_keeps_its_base(slurm):
    (slurm.folder / "other").mkdir()
    (slurm.folder / "other/config.json").write_text("{ }")
    slurm.run(BASE_HF=slurm.folder / "other", PLAN_STATUS=3)  # nothing was trained: the base may still be put right
    assert slurm.run(REACHED=4)[0] == 0
    done = len(slurm.commands())
    status, output = slurm.run(BASE_HF=slurm.folder / "other", SLURM_RESTART_COUNT=1)
    assert status == 2 and output.count("\n") == 1
    begun = f"the run in {slurm.folder}/run was started from {slurm.folder}/base (base-"
    assert f"error: BASE_HF={slurm.folder}/other (imported as other-" in output and begun in output
    assert f"delete {slurm.folder}/run/job.json" in output
    assert {line for line in slurm.commands()[done:]} == {"scontrol show hostnames first,second"}
    (slurm.folder / "run/job.json").unlink()
    status, output = slurm.run(BASE_HF=slurm.folder / "other", SLURM_RESTART_COUNT=1)
    assert status == 0 and "training from step 4 to 9" in output


def test_ntp_imports_no_reference(slurm):
    status, output = slurm.run(OBJECTIVE="ntp", RL_HF="")
    assert status == 0 and output.count("importing") == 1


def test_each_start_of_the_training_copies_to_the_nodes_before(slurm):
    status, _ = slurm.run(**fail(KILLED, 1), STAGE="/local")
    assert status == 0
    starts = ["2 megatron_remit.launch.stage", "2 megatron_remit.launch.node"] * 2
    assert [line for line in slurm.commands() if "launch" in line] == starts
    words = (slurm.folder / "notes/commands").read_text()
    assert f"--data-cache-path {slurm.folder}/run/data-cache" in words and "--reference-load /local/rl-" in words


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ({"PLAN_STATUS": 3}, "these settings cannot be run (status 3)"),
        ({"IMPORT_STATUS": 3}, "no import of {}/base (status 3)"),
        ({"STAGE": "/local", "STAGE_STATUS": 2}, "no copies to STAGE=/local (status 2)"),
        ({"EXPORT_STATUS": 3}, "no export to {}/run/hf (status 3)"),
        (
            {"TRAIN_STATUS": 1, "REACHED": 4, "RETRIES": 0},
            "training ended with status 1 at step 4; 1 failures without a new checkpoint (RETRIES); the first 'error:'",
        ),
    ],
)
def test_a_command_that_fails_ends_the_job(failure, message, slurm):
    status, output = slurm.run(**failure)
    assert status == 2 and f"error: {message.format(slurm.folder)}" in output
    assert "requeue" not in " ".join(slurm.commands())


def test_a_job_without_srun_says_so(slurm):
    (slurm.folder / "bin/srun").unlink()
    for name in ("bash", "dirname"):
        (slurm.folder / "bin" / name).symlink_to(shutil.which(name))
    status, output = slurm.run(PATH=slurm.folder / "bin")
    assert status == 2 and output.splitlines() == [
        "error: [Errno 2] No such file or directory: 'srun'",
        "error: these settings cannot be run (status 127)",
    ]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_preempted_job_saves_and_is_requeued(number, slurm):
    job = slurm.start(HANG=1, REACHED=4)
    wait_for((slurm.folder / "notes/training").exists, job)
    job.send_signal(number)
    status, output = end(job)
    assert status == 0
    assert output.splitlines()[-2:] == [
        "> TIME signal from Slurm: saving and stopping",
        "> TIME preempted: requeued at step 4 of 9",
    ]
    assert slurm.commands()[-2:] == ["squeue --noheader --jobs=77 --format=%T", "scontrol requeue 77"]
    status, output = slurm.run(SLURM_RESTART_COUNT=1)
    assert status == 0 and "training from step 4 to 9" in output and "importing" not in output
    assert slurm.commands().count("1 plan_run") == 1


def test_a_job_that_saves_its_last_step_when_preempted_goes_on_to_the_export(slurm):
    job = slurm.start(HANG=1)
    wait_for((slurm.folder / "notes/training").exists, job)
    job.send_signal(signal.SIGUSR1)
    status, output = end(job)
    assert status == 0 and "finished at step 9" in output and "requeued" not in output


@pytest.mark.parametrize("status", [0, 138, 143])
def test_workers_that_slurm_ended_are_no_failure(status, slurm):
    ended, output = slurm.run(TRAIN_STATUS=status, REACHED=4)
    assert ended == 0 and "requeued at step 4 of 9" in output


@pytest.mark.parametrize(
    ("variables", "status", "message"),
    [
        ({"SLURM_RESTART_COUNT": 99}, 0, "> TIME preempted: requeued at step 4 of 9"),
        ({"SLURM_RESTART_COUNT": 100}, 2, "error: preempted: restarted 100 times (MAX_RESTARTS): not requeued"),
        ({"MAX_RESTARTS": 0}, 2, "error: preempted: restarted 0 times (MAX_RESTARTS): not requeued"),
        ({"STATE": "CANCELLED"}, 1, "> TIME ended by Slurm (CANCELLED) at step 4 of 9"),
        ({"REQUEUE_STATUS": 1}, 2, "error: preempted: Slurm does not requeue this job; submit the same command again"),
    ],
)
def test_when_a_job_is_requeued(variables, status, message, slurm):
    ended, output = slurm.run(REACHED=4, **variables)
    assert ended == status and message in output
    assert ("scontrol requeue 77" in slurm.commands()) == (status == 0 or "REQUEUE_STATUS" in variables)


def test_a_run_folder_has_one_job(slurm):
    (slurm.folder / "run").mkdir()
    with open(slurm.folder / "run/job.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, output = slurm.run()
    assert (status, output) == (
        2,
        f"error: RUN_DIR={slurm.folder}/run: another job is running there; give each job its own\n",
    )


def _import_of_base(slurm):
    """The folder of the base's import: an NTP job makes it."""
    slurm.run(OBJECTIVE="ntp", RUN_DIR=slurm.folder / "other/run", IMPORT_DIR=slurm.folder / "imported")
    return next((slurm.folder / "imported").glob("base-????????????"))


@contextmanager
def _another_job_that_imports(slurm):
    """The folder of an import that is under way, and a job that needs it."""
    imported = _import_of_base(slurm)
    imported.rename(f"{imported}.tmp-1")
    with open(f"{imported}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield imported, slurm.start(OBJECTIVE="ntp", IMPORT_DIR=slurm.folder / "imported")


def test_a_second_job_waits_for_an_import_and_uses_it(slurm):
    with _another_job_that_imports(slurm) as (imported, job):
        assert job.stdout.readline().endswith(f"waiting for another job that imports {slurm.folder}/base\n")
        os.rename(f"{imported}.tmp-1", imported)
    status, output = end(job)
    assert status == 0 and output.startswith(f"> TIME imported by another job: {imported}\n")


def test_what_a_killed_import_left_is_removed(slurm):
    imported = _import_of_base(slurm)
    imported.rename(f"{imported}.tmp-1")
    status, output = slurm.run(OBJECTIVE="ntp", IMPORT_DIR=slurm.folder / "imported")
    assert status == 0 and output.startswith(f"> TIME importing {slurm.folder}/base\n")
    assert [path.name for path in imported.parent.glob("*.tmp-*")] == []


def test_a_job_that_is_preempted_while_it_waits_for_an_import_is_requeued(slurm):
    with _another_job_that_imports(slurm) as (_, job):
        assert "waiting for another job" in job.stdout.readline()
        job.send_signal(signal.SIGUSR1)
        status, output = end(job)
    assert status == 0 and "requeued at step 0 of 9" in output
