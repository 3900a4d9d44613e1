"""Training from stored NLLs equals training with the reference in memory, whatever the layouts of writer and reader."""

import os
import random
import shutil
import signal
import time

import pytest

from megatron_remit import heartbeat
from megatron_remit.score_store.maintain import prune, verify
from megatron_remit.score_store.shard import PATTERN
from tests.conftest import VOCABULARY, write_corpus
from tests.ranks import ROOT, pretrain, run_command
from tests.score_store.programs import SCORER, assert_same_rows, rows_of, score, start

FIGURES = (
    "lm loss",
    "remit loss",
    "reference nll",
    "delta mean",
    "weight mean",
    "weight std",
    "clipped low",
    "clipped high",
)
# Steps after which every row of the corpus was read at least once (one epoch has 390 rows).
WHOLE_CORPUS = 60


def figures(run):
    return {name: run.series(name) for name in FIGURES}


def assert_close(found, expected, tolerance):
    for name in FIGURES:
        assert found[name] == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name


def from_store(material, store, **overrides):
    return material.flags(**{"objective": "remit", "score_store": store} | overrides)


@pytest.fixture(scope="module")
def online(material):
    """Scored ahead of each step by the reference itself."""
    return figures(pretrain(1, *material.remit(row_seed=3)))


@pytest.fixture(scope="module")
def exact_store(material, tmp_path_factory):
    """The rows of three steps, in float32."""
    folder = tmp_path_factory.mktemp("exact") / "store"
    run = score(1, folder, *material.remit(row_seed=3, score_dtype="float32"))
    assert "scored 24, found 0 of 24 rows" in run.output and "ETA" in run.output
    return folder


@pytest.fixture(scope="module")
def corpus_store(material, tmp_path_factory):
    """Every row of the corpus, in float16."""
    folder = tmp_path_factory.mktemp("corpus") / "store"
    score(1, folder, *material.remit(row_seed=3, train_iters=WHOLE_CORPUS))
    return folder


@pytest.mark.slow
def test_scores_in_float32_train_as_the_reference_does_bit_for_bit(material, online, exact_store):
    run = pretrain(1, *from_store(material, exact_store, row_seed=3))
    assert figures(run) == online
    assert "loading the reference" not in run.output


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["sequence", "global-batch"])
def test_another_objective_reads_the_same_store(scope, material, exact_store):
    flags = {"row_seed": 3, "objective": "rho1", "rho1_scope": scope}
    expected = pretrain(1, *material.remit(**flags))
    run = pretrain(1, *from_store(material, exact_store, **flags))
    assert "loading the reference" not in run.output
    for name in ("lm loss", "rho1 loss", "kept delta mean", "kept share"):
        assert run.series(name) == expected.series(name), name


@pytest.mark.slow
def test_scores_of_one_rank_in_float16_serve_another_layout(material, online, corpus_store):
    run = pretrain(
        4, *from_store(material, corpus_store, row_seed=3, tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    )
    # NLLs are near 6.4 here: float16 moves a row's by at most 2^-9, and a weight by as much.
    assert_close(figures(run), online, 2.0**-9)
    assert "loading the reference" not in run.output


@pytest.mark.slow
def test_another_seed_micro_batch_and_data_parallel_size_find_every_row(material, corpus_store):
    run = pretrain(
        2, *from_store(material, corpus_store, row_seed=3, seed=99, micro_batch_size=4, train_iters=WHOLE_CORPUS)
    )
    assert len(run.series("lm loss")) == WHOLE_CORPUS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (4, {"tensor_model_parallel_size": 2, "reference_micro_batch_size": 4}),
        (
            2,
            {
                "pipeline_model_parallel_size": 2,
                "num_layers_per_virtual_pipeline_stage": 1,
                "reference_micro_batch_size": 1,
            },
        ),
    ],
    ids=["TP2xDP2", "PP2xVPP2"],
)
def test_every_layout_scores_the_same_rows(ranks, layout, material, exact_store, tmp_path):
    score(ranks, tmp_path / "store", *material.remit(row_seed=3, score_dtype="float32", **layout))
    assert_same_rows(rows_of(tmp_path / "store"), rows_of(exact_store), 2e-5)


@pytest.mark.slow
def test_ranks_hear_from_a_writer_that_passes_over_known_rows(material, exact_store, tmp_path):
    """A resumed scorer may find millions of them; the replica's other ranks wait in a collective meanwhile."""
    folder = tmp_path / "store"
    shutil.copytree(exact_store, folder)
    whole = rows_of(exact_store)
    prune(folder, set(random.Random(6).sample(sorted(whole), len(whole) // 2)))
    run = score(
        2,
        folder,
        *material.remit(row_seed=3, score_dtype="float32", tensor_model_parallel_size=2),
        program=(ROOT / "tests/score_store/impatient_scorer.py",),
    )
    assert "scored 12, found 12 of 24 rows" in run.output
    assert_same_rows(rows_of(folder), whole, 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (4, {"pipeline_model_parallel_size": 2}),
        (
            2,
            {
                "pipeline_model_parallel_size": 2,
                "num_layers_per_virtual_pipeline_stage": 1,
                "reference_micro_batch_size": 1,
            },
        ),
    ],
    ids=["PP2xDP2", "PP2xVPP2"],
)
def test_missing_rows_are_scored_online_and_written(ranks, layout, material, online, exact_store, tmp_path):
    """A random half of the rows is gone, so the replicas miss different rows of a step."""
    folder = tmp_path / "store"
    shutil.copytree(exact_store, folder)
    whole = rows_of(exact_store)
    prune(folder, set(random.Random(5).sample(sorted(whole), len(whole) // 2)))
    run = pretrain(
        ranks, *material.remit(row_seed=3, score_store=folder, score_miss="online", score_store_write=True, **layout)
    )
    assert_close(figures(run), online, 2e-5)
    assert_same_rows(rows_of(folder), whole, 2e-5)


@pytest.mark.slow
def test_an_online_run_fills_a_new_store_with_what_the_scorer_writes(material, online, exact_store, tmp_path):
    folder = tmp_path / "store"
    run = pretrain(
        1,
        *material.remit(
            row_seed=3, score_store=folder, score_miss="online", score_store_write=True, score_dtype="float32"
        ),
    )
    assert figures(run) == online
    assert_same_rows(rows_of(folder), rows_of(exact_store), 0.0)


@pytest.mark.slow
def test_blends_several_epochs_document_masks_and_evaluation(material, tmp_path):
    """Two corpora, the smaller one several times over, attention and positions cut at document borders."""
    write_corpus(tmp_path / "small", VOCABULARY, documents=20, seed=4)
    common = {
        "data_path": 0.5,
        "reset_attention_mask": True,
        "reset_position_ids": True,
        "train_iters": 6,
        "split": "80,20,0",
        "eval_iters": 1,
        "eval_interval": 3,
    }
    blend = [material.corpus, 0.5, tmp_path / "small"]

    def flags(listed):
        at = listed.index("--data-path") + 2
        return [*listed[:at], *map(str, blend), *listed[at:]]

    store = tmp_path / "store"
    score(1, store, *flags(material.remit(**common, score_dtype="float32")))
    expected = figures(pretrain(1, *flags(material.remit(**common))))
    run = pretrain(2, *flags(from_store(material, store, **common, pipeline_model_parallel_size=2)))
    assert_close(figures(run), expected, 2e-5)
    assert "validation loss at iteration 3" in run.output


@pytest.mark.slow
def test_a_killed_scorer_goes_on_where_it_was(material, exact_store, tmp_path):
    folder = tmp_path / "store"
    flags = material.remit(row_seed=3, score_dtype="float32", score_shard_seconds=0)
    for shards in (3, 8):
        job = start(SCORER, *flags, "--score-store", folder)
        while len(list(folder.glob(PATTERN))) < shards and job.poll() is None:
            time.sleep(0.02)
        job.kill()
        assert job.wait() == -signal.SIGKILL
        job.stdout.close()
    left = verify(folder)
    assert left.problems == [] and 8 <= left.rows < 24
    run = score(1, folder, *flags)
    assert f"scored {24 - left.rows}, found {left.rows} of 24 rows" in run.output
    assert_same_rows(rows_of(folder), rows_of(exact_store), 0.0)


@pytest.mark.slow
def test_a_scorer_that_is_asked_to_end_says_what_it_leaves(material, exact_store, tmp_path):
    folder, beats = tmp_path / "store", tmp_path / "heartbeat.json"
    life = {"exit_signal_handler": True, "heartbeat": beats}
    flags = material.remit(row_seed=3, score_dtype="float32", score_shard_seconds=0, **life)
    job = start(SCORER, *flags, "--score-store", folder)
    while len(list(folder.glob(PATTERN))) < 3 and job.poll() is None:
        time.sleep(0.02)
    job.terminate()
    output = ""
    for line in job.stdout:
        output += line
        if "ended by a signal" in line:
            job.terminate()  # Slurm sends a second one, which comes while Python ends
    job.wait(timeout=300)
    assert job.returncode == 0, output
    left = 24 - verify(folder).rows
    assert 0 < left < 24 and f"> ended by a signal: replica 0 leaves {left} rows to the next start" in output
    beat = heartbeat.read(beats)
    assert beat.doing == "scoring" and 24 - left <= 2 * beat.step <= 24  # microbatches of two rows
    assert "ended by a signal" not in score(1, folder, *flags).output
    assert_same_rows(rows_of(folder), rows_of(exact_store), 0.0)


@pytest.mark.slow
def test_training_follows_a_scorer_that_starts_after_it(material, online, tmp_path):
    folder = tmp_path / "store"
    scorer = None
    trainer = start("-m", "megatron_remit.pretrain", *from_store(material, folder, row_seed=3, score_wait=120))
    try:
        waiting = next(line for line in trainer.stdout if "is not there yet: waiting at most 120 s" in line)
        scorer = start(
            SCORER, *material.remit(row_seed=3, score_dtype="float32", score_shard_seconds=0), "--score-store", folder
        )
        output = trainer.communicate(timeout=300)[0]
        assert trainer.returncode == 0, output
        assert scorer.wait(timeout=60) == 0
    finally:
        for job in (trainer, scorer):
            if job is not None and job.poll() is None:
                job.kill()
    assert "manifest.json" in waiting
    assert f"reference nll: {online['reference nll'][2]:.6E}" in output


@pytest.mark.slow
def test_the_tool_names_coverage_and_keeps_a_runs_rows(material, corpus_store, tmp_path):
    folder = tmp_path / "store"
    shutil.copytree(corpus_store, folder)
    run = material.flags(row_seed=3, train_iters=10)
    tool = ["python", ROOT / "tools/score_store.py"]
    # Ten times the corpus and another seed: the rows are those that the scorer saw in one epoch.
    shown = run_command([*tool, "info", folder, "--", *material.flags(row_seed=3, seed=99, train_iters=490)])
    assert "coverage             390 of 390 different rows of the run (100.00 %)" in shown.output, shown.output
    assert run_command([*tool, "prune", folder, "--", *run]).returncode == 0
    assert verify(folder).rows == 80
    assert "1 shards, now 1" in run_command([*tool, "merge", folder]).output
    shard = next(folder.glob(PATTERN))
    os.truncate(shard, shard.stat().st_size - 1)
    damaged = run_command([*tool, "verify", folder])
    assert damaged.returncode == 2 and f"{shard}: damaged" in damaged.output and "run 'prune'" in damaged.output
