"""When a job trains again, when it goes back into the queue, and when it gives up, with stand-ins for Slurm's commands.

tests/slurm/test_troubled_jobs.py has the same on a real Slurm.
"""

import json

import pytest

from megatron_remit.launch.slurm import UNHEARD
from tests.launch.stand_in import StandIn

KILLED = [{"rank": 3, "node": "second", "status": -9, "line": "", "time": 1.0}]
REFUSED = [{"rank": 0, "node": "first", "status": 2, "line": "error: --lr is missing", "time": 1.0}]
ASSERTED = [{"rank": 0, "node": "first", "status": 1, "line": "AssertionError: x", "time": 1.0}]
BRIEF = {"RETRY_SECONDS": 0.1}


@pytest.fixture
def slurm(tmp_path):
    return StandIn(tmp_path)


def fail(cause, times, **more):
    return {"FAILS": times, "CAUSE": json.dumps(cause)} | BRIEF | more


def status(slurm):
    return json.loads((slurm.folder / "run/status.json").read_text())


def trainings(slurm):
    return slurm.commands().count("2 megatron_remit.launch.node")


def test_a_killed_rank_is_tried_again(slurm):
    code, output = slurm.run(**fail(KILLED, 1))
    assert code == 0 and trainings(slurm) == 2
    log = f"{slurm.folder}/run/logs/77-0-0/rank-00003.stderr.log"
    assert (
        f"> TIME training failed at step 0: rank 3 on second: ended by signal 9 (SIGKILL) ({log}); try 1 of 3 "
        "begins in 0.1 s\n" in output
    )
    assert output.splitlines()[-1] == f"> TIME finished at step 9 of 9: {slurm.folder}/run/hf"
    assert status(slurm)["state"] == "finished" and "requeue" not in " ".join(slurm.commands())


def test_a_job_gives_up_after_so_many_tries(slurm):
    code, output = slurm.run(**fail(KILLED, 4, RETRIES=2, NODE_FAILURES=0))
    assert code == 2 and trainings(slurm) == 3
    assert "begins in 0.1 s" in output and "begins in 0.2 s" in output
    assert output.splitlines()[-1].endswith("; 3 failures without a new checkpoint (RETRIES)")
    found = status(slurm)
    assert found["line"] == output.splitlines()[-1]
    assert (found["state"], found["requeued"], found["rank"], found["node"]) == ("failed", False, 3, "second")


@pytest.mark.parametrize("stepped", ["", "5"])
def test_an_error_of_flags_or_files_ends_the_job_at_once(stepped, slurm):
    code, output = slurm.run(**fail(REFUSED, 4, STEPPED=stepped))
    assert code == 2 and trainings(slurm) == 1
    assert "error: --lr is missing" in output and "an error of its flags or files" in output
    assert status(slurm)["error"] == "error: --lr is missing"


def test_an_exception_before_the_first_step_ends_the_job_at_once(slurm):
    code, output = slurm.run(**fail(ASSERTED, 4))
    assert code == 2 and trainings(slurm) == 1 and output.endswith("; it failed before its first step\n")


def test_an_exception_that_comes_again_at_the_same_step_is_not_tried_a_third_time(slurm):
    code, output = slurm.run(**fail(ASSERTED, 4, STEPPED=5, NODE_FAILURES=0))
    assert code == 2 and trainings(slurm) == 2
    assert "training failed at step 5: rank 0 on first: AssertionError: x" in output
    assert output.endswith("; for the second time there, so it is not tried again\n")


def test_a_node_that_failed_twice_is_left_out(slurm):
    code, output = slurm.run(**fail(KILLED, 4, EXCLUDED="n[7-9]"))
    assert code == 0 and trainings(slurm) == 2
    assert "> TIME second: failed too often (NODE_FAILURES), and will not be used again by this job" in output
    assert slurm.commands()[-3:] == [
        "scontrol requeue 77",
        "scontrol show job 77",
        "scontrol update JobId=77 ExcNodeList=n[7-9],second",
    ]
    assert (status(slurm)["state"], status(slurm)["requeued"]) == ("failed", True)
    code, _ = slurm.run(**fail(KILLED, 2, SLURM_RESTART_COUNT=1))
    assert code == 0 and status(slurm)["state"] == "finished"


def test_a_run_that_hangs_is_ended_and_requeued(slurm):
    code, output = slurm.run(STUCK=7, HANG_MINUTES=0.02)
    assert code == 0
    assert "stacks" in output
    text = "hung at step 7: no step for 0.02 minutes after step 7"
    assert output.splitlines()[-1] == f"> TIME {text}: requeued at step 0 of 9"
    assert slurm.commands()[-1] == "scontrol requeue 77"
    assert (status(slurm)["state"], status(slurm)["reached"], status(slurm)["requeued"]) == ("hung", 7, True)


def test_a_run_that_always_hangs_is_given_up(slurm):
    for restart in range(2):
        code, output = slurm.run(STUCK=7, HANG_MINUTES=0.02, RETRIES=1, SLURM_RESTART_COUNT=restart)
    assert code == 2 and output.splitlines()[-1].endswith("; 2 failures without a new checkpoint (RETRIES)")
    assert (status(slurm)["state"], status(slurm)["requeued"]) == ("hung", False)


@pytest.mark.parametrize("deaf", ["SIGPIPE", *UNHEARD])
def test_a_command_that_slurm_did_not_hear_is_given_again(deaf, slurm):
    code, _ = slurm.run(STUCK=7, HANG_MINUTES=0.02, DEAF=deaf, MASTER_ADDR="first")
    assert code == 0 and status(slurm)["requeued"] is True
    asked = [command.split()[:2] for command in slurm.commands() if command.startswith(("squeue", "scontrol"))]
    assert asked == [["squeue", "--noheader"]] * 2 + [["scontrol", "requeue"]] * 2


def test_a_command_that_slurm_refuses_is_not_given_again(slurm):
    code, output = slurm.run(STUCK=7, HANG_MINUTES=0.02, REQUEUE_STATUS=1)
    assert code == 2 and slurm.commands().count("scontrol requeue 77") == 1
    assert output.endswith("Slurm does not requeue this job; submit the same command again to continue\n")


def test_a_command_that_no_node_can_start_ends_the_job_at_once(slurm):
    code, output = slurm.run(TRAIN_STATUS=127, REACHED=4)
    assert code == 2 and trainings(slurm) == 1 and "training ended with status 127 at step 4" in output


def test_a_finished_run_is_never_requeued(slurm):
    code, _ = slurm.run(TRAIN_STATUS=1)
    assert code == 0 and status(slurm)["state"] == "finished"
    code, _ = slurm.run(SLURM_RESTART_COUNT=1, **fail(KILLED, 4))
    assert code == 0 and trainings(slurm) == 1 and "requeue" not in " ".join(slurm.commands())


def test_settings_that_cannot_be_run_are_in_the_status_too(slurm):
    code, output = slurm.run(PLAN_STATUS=3)
    assert code == 2
    assert status(slurm)["line"] == output.splitlines()[-1] == "error: these settings cannot be run (status 3)"
