"""A job that scores (``TASK=score``) with stand-ins for Slurm's commands, and the runs that read its scores.

tests/slurm/test_scoring.py has the same on a real Slurm.
"""

import signal

import pytest

from tests.launch.stand_in import StandIn, end, wait_for
from tests.launch.test_retries import KILLED, fail


@pytest.fixture
def slurm(tmp_path):
    return StandIn(tmp_path)


def scoring(slurm, **more):
    return {"TASK": "score", "SCORES": slurm.folder / "scores"} | more


def test_the_models_are_imported_the_rows_scored_and_nothing_is_trained_or_exported(slurm):
    status, output = slurm.run(**scoring(slurm))
    assert status == 0
    assert output.splitlines() == [
        f"> TIME importing {slurm.folder}/base",
        f"> TIME importing {slurm.folder}/rl",
        f"> TIME scoring into {slurm.folder}/scores on 2 x 1 GPUs",
        f"> TIME finished with 1 shards of scores in {slurm.folder}/scores",
    ]
    assert [line for line in slurm.commands() if line[0] in "12"] == [
        *("1 import_hf", "1 import_hf", "2 megatron_remit.launch.node")
    ]
    (command,) = [line for line in (slurm.folder / "notes/commands").read_text().splitlines() if "launch.node" in line]
    assert "tools/score_corpus.py " in command and "megatron_remit.pretrain" not in command
    assert f"--score-store {slurm.folder}/scores --reference-load {slurm.folder}/imported/rl-" in command
    assert not (slurm.folder / "run/checkpoints").exists()


def test_a_preempted_scorer_is_requeued_and_ends_with_the_next_start(slurm):
    job = slurm.start(**scoring(slurm, HANG=1))
    wait_for((slurm.folder / "notes/training").exists, job)
    job.send_signal(signal.SIGUSR1)
    status, output = end(job)
    assert status == 0 and output.splitlines()[-1] == (
        f"> TIME preempted: requeued at 1 shards of scores in {slurm.folder}/scores"
    )
    status, output = slurm.run(**scoring(slurm, SLURM_RESTART_COUNT=1))
    assert status == 0 and "finished with 2 shards" in output and "importing" not in output


def test_a_scorer_whose_tasks_alone_got_the_signal_is_not_taken_for_finished(slurm):
    status, output = slurm.run(**scoring(slurm, ASKED=1))
    assert status == 0 and "preempted: requeued at 1 shards" in output and "finished" not in output


def test_a_killed_rank_is_tried_again(slurm):
    status, output = slurm.run(**scoring(slurm, **fail(KILLED, 1)))
    assert status == 0 and slurm.commands().count("2 megatron_remit.launch.node") == 2
    assert "> TIME scoring failed at step 0: rank 3 on second: ended by signal 9 (SIGKILL)" in output


def test_a_run_reads_the_scores(slurm):
    status, _ = slurm.run(SCORES=slurm.folder / "scores")
    assert status == 0
    commands = (slurm.folder / "notes/commands").read_text().splitlines()
    (command,) = [line for line in commands if "megatron_remit.pretrain" in line]
    assert f"--score-store {slurm.folder}/scores " in command


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"TASK": "judge"}, "error: TASK is 'judge': expected train or score"),
        ({"TASK": "score"}, "error: SCORES is not set: give the folder of the score store that TASK=score writes"),
        ({"SCORES": "/s", "OBJECTIVE": "ntp"}, "error: SCORES=/s: OBJECTIVE=ntp reads no scores; unset SCORES"),
    ],
)
def test_what_cannot_be_done_is_said(variables, message, slurm):
    assert slurm.run(**variables) == (2, f"{message}\n")
