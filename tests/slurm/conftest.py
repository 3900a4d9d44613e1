"""Models and a corpus for the tests on a real Slurm. Run with ``make test-slurm``, which starts the cluster."""

import json
import os
import random

import pytest

from tests.hf_models import make_olmo2
from tests.ranks import ROOT, run_command
from tests.slurm.jobs import Cluster, Inputs


@pytest.fixture(scope="session", autouse=True)
def cluster():
    if "SLURM_CONF" not in os.environ:
        pytest.exit("no cluster: run these tests with `make test-slurm`", returncode=2)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    make_olmo2(folder / "base", seed=1)
    make_olmo2(folder / "rl", seed=2)
    draw = random.Random(0)
    with open(folder / "corpus.jsonl", "w") as lines:
        for _ in range(2000):
            text = " ".join("".join(draw.choices("abcdefgh", k=draw.randint(1, 6))) for _ in range(draw.randint(5, 40)))
            lines.write(json.dumps({"text": text}) + "\n")
    flags = ["--output-prefix", folder / "corpus", "--tokenizer-model", folder / "base"]
    done = run_command(["python", ROOT / "tools/preprocess_corpus.py", "--input", folder / "corpus.jsonl", *flags])
    assert done.returncode == 0, done.output
    return Inputs(folder / "base", folder / "rl", folder / "corpus")


@pytest.fixture(scope="session")
def slurm_cluster(inputs, tmp_path_factory):
    return Cluster(inputs, tmp_path_factory.mktemp("runs"))
