"""Run the scorer and the store's tool as a user does, and look into stores without Megatron."""

import os
import subprocess
import sys

import numpy

from megatron_remit.score_store.maintain import verify
from megatron_remit.score_store.reader import ScoreStore
from tests.ranks import ROOT, run_command


def scorer_command(ranks, store, *flags):
    return ["python", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
            ROOT / "tools/score_corpus.py", *map(str, flags), "--score-store", store]


def score(ranks, store, *flags, check=True):
    """``torchrun tools/score_corpus.py``."""
    run = run_command(scorer_command(ranks, store, *flags))
    if check:
        assert run.returncode == 0, run.failure()
    return run


def start(command):
    """Start a program as the leader of a process group of its own."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    words = [sys.executable if part == "python" else str(part) for part in command]
    return subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rows_of(folder):
    """Every row of a sound store: {key: NLLs [s] float32}."""
    check = verify(folder)
    assert check.problems == [] and check.duplicates == 0
    store = ScoreStore(folder)
    run = store.run()
    keys = zip(run.columns["high"].tolist(), run.columns["low"].tolist(), strict=True)
    return {key: store.read(key) for key in keys}


def assert_same_rows(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for key, nll in found.items():
        numpy.testing.assert_allclose(nll, expected[key], rtol=tolerance, atol=tolerance)
