"""Scores first, then a run from them, on a real Slurm: the run is the one that scores its own steps, bit for bit."""

import time

import pytest

from megatron_remit import heartbeat
from tests.slurm.jobs import slurm

pytestmark = pytest.mark.timeout(1200)
STEPS = 120
# A reference that scores row by row, so that there is time to preempt it.
SHORT = {"TRAIN_ITERS": STEPS, "REFERENCE_MICRO_BATCH_SIZE": 1}
_NONE = heartbeat.Beat(0, heartbeat.STARTING, 0.0)
# Scores of full precision, in shards small enough that a preempted job has some.
EXACT = "--score-dtype float32 --score-shard-seconds 1"


def test_a_preempted_scorer_on_two_nodes_and_the_run_behind_it(slurm_cluster):
    scores = slurm_cluster.folder / "scores"
    given = SHORT | {"SCORES": scores, "EXTRA_ARGS": EXACT}
    scorer = slurm_cluster.submit("scoring", "--nodes=2", TASK="score", **given)
    scorer.wait(lambda: list(scorer.run_dir.glob("logs/*")), "start of the scorer")
    end = time.monotonic() + 300
    while (heartbeat.read(scorer.run_dir / "heartbeat.json") or _NONE).step == 0 and time.monotonic() < end:
        time.sleep(0.01)
    slurm("scancel", "--signal=TERM", scorer.number)
    run = slurm_cluster.submit("from_scores", f"--dependency=afterok:{scorer.number}", **given)
    scorer.wait_completed()
    assert "requeued at" in scorer.text() and "leaves" in scorer.text() and "finished with" in scorer.text()
    online = slurm_cluster.submit("online", **SHORT)
    run.wait_completed()
    online.wait_completed()
    assert "loading the reference from" in online.text() and "loading the reference from" not in run.text()
    for tag in ("lm loss", "remit loss", "reference nll", "weight std", "grad-norm"):
        assert run.scalars(tag) == online.scalars(tag) and len(online.scalars(tag)) == STEPS, tag
