"""Run the scorer as a user does, and look into stores without Megatron."""

import os
import subprocess
import sys

import numpy

from megatron_remit.score_store.maintain import verify
from megatron_remit.score_store.reader import ScoreStore
from tests.ranks import ROOT, free_port, run_job

SCORER = ROOT / "tools/score_corpus.py"


def score(ranks, store, *flags, program=(SCORER,)):
    """``tools/score_corpus.py`` on so many ranks."""
    script, *words = map(str, (*program, *flags, "--score-store", store))
    run = run_job(ranks, script=script, command_line=words)
    assert run.returncode == 0, run.failure()
    return run


def start(*command):
    """Start a program with one rank, without torchrun between it and a signal."""
    environment = dict(
        os.environ,
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        CUDA_VISIBLE_DEVICES="",
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="1",
        LOCAL_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
    )
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rows_of(folder):
    """Every row of a sound store: {key: NLLs [s] float32}."""
    check = verify(folder)
    assert check.problems == [] and check.duplicates == 0
    store = ScoreStore(folder)
    table = store.table()
    keys = zip(table.columns["high"].tolist(), table.columns["low"].tolist(), strict=True)
    return {key: store.read(key) for key in keys}


def assert_same_rows(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for key, nll in found.items():
        numpy.testing.assert_allclose(nll, expected[key], rtol=tolerance, atol=tolerance)
