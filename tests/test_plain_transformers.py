"""The training program against examples/plain_transformers.py, a loop that shares none of its code.

Both start from the same Hugging Face folders and the same JSONL, and each cuts and orders its own rows. Model, kernels,
data, clipping, schedule and the order of sums are written twice: an error in one of them shows as another curve.
"""

import json
import random
import re
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from plain_transformers import read_rows, reference_nll, train
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_remit.convert.megatron_to_hf import export_hf
from megatron_remit.data.preprocess import preprocess
from tests.ranks import ROOT, environment, pretrain
from tests.score_store.programs import score

FILE = ROOT / "examples" / "plain_transformers.py"
WITHOUT_MEGATRON = "import runpy, sys; sys.modules['megatron'] = None; del sys.argv[0]; " + (
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
STEPS, BATCH, LENGTH = 20, 8, 24
COMMON = {"seq_length": LENGTH, "lr": 1e-2, "min_lr": 1e-4, "seed": 7, "row_seed": 3}
FIGURES = ("lm loss", "remit loss", "grad-norm")
# Both compute in fp32, where a sum's order moves a loss by a few units of 6e-8. Such a difference grows from step to
# step: Adam divides by the root of the mean squared gradient, so that a gradient of nearly zero moves its parameter by
# a full learning rate, in the direction that rounding gives it. Measured over the 20 steps: losses differ by up to 9e-7
# of their value, gradient norms by 1.7e-5, each tensor by 3.3e-4 of the way that training took it (2-norms). The
# tolerances leave room for other processors. NTP in place of ReMiT differs by 1e-2, 4e-2 and 0.1 or more.
LOSS, NORM, WAY = 1e-5, 2e-4, 5e-3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the training program runs in tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus(material, tmp_path_factory):
    """JSONL, and .bin and .idx made of it; the run reads it one and a half times."""
    folder = tmp_path_factory.mktemp("text")
    draw = random.Random(5)
    words = ["".join(draw.choices("aeioubdgklmnprst", k=draw.randint(2, 6))) for _ in range(60)]
    lines = [json.dumps({"text": " ".join(draw.choices(words, k=draw.randint(1, 20)))}) for _ in range(75)]
    lines[9:9] = ["", json.dumps({"text": ""})]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    preprocess([folder / "text.jsonl"], folder / "text", "HuggingFaceTokenizer", material.policy / "hf")
    return folder / "text"


@pytest.fixture(scope="module")
def flags(material, corpus):
    """Of the training program and the scorer."""
    adam = {"optimizer": "adam", "adam_beta1": 0.9, "adam_beta2": 0.95, "weight_decay": 0.1, "clip_grad": 1.0}
    schedule = {"train_iters": STEPS, "lr_decay_style": "cosine", "global_batch_size": BATCH}
    return {**COMMON, **adam, **schedule, "data_path": corpus, "eod_mask_loss": None}


@pytest.fixture(scope="module")
def settings(material, corpus):
    """The same for the plain loop."""
    folders = {name: material.policy.with_name(f"hf_{name}") for name in ("policy", "reference")}
    own = {"base": folders["policy"], "rl": folders["reference"], "data": corpus.with_suffix(".jsonl"), "device": "cpu"}
    return Namespace(**COMMON, **own, steps=STEPS, batch=BATCH, epsilon=0.2, objective="remit", score_store=None)


@pytest.fixture(scope="module")
def program(material, flags, tmp_path_factory):
    """Its log, and the tensors of its export."""
    folder = tmp_path_factory.mktemp("program")
    run = pretrain(1, *material.remit(**flags, save=folder / "trained", save_interval=STEPS))
    export_hf(folder / "trained", material.policy / "hf", folder / "hf")
    return run, load_file(folder / "hf" / "model.safetensors")


@pytest.fixture(scope="module")
def plain(settings):
    """The rows, the reference's NLLs of them, the log [steps, 3], and the tensors at the end."""
    rows_RW = read_rows(settings)
    reference_RS = reference_nll(settings, rows_RW)
    return rows_RW, reference_RS, *plain_run(settings, rows_RW, reference_RS)


def plain_run(settings, rows_RW, reference_RS):
    model = AutoModelForCausalLM.from_pretrained(settings.base, dtype=torch.float32)
    return train(settings, model, rows_RW, reference_RS), model.state_dict()


def way_apart(found, expected, start):
    """For each tensor, the distance of two runs' ends over the distance from the start to the end, in 2-norms."""
    return {name: ((found[name] - end).norm() / (end - start[name]).norm()).item() for name, end in expected.items()}


def test_twenty_steps_of_the_program_are_those_of_the_plain_loop(program, plain, settings):
    run, trained = program
    _, _, report, tensors = plain
    for column, (name, tolerance) in enumerate(zip(FIGURES, (LOSS, LOSS, NORM), strict=True)):
        assert report[:, column].tolist() == pytest.approx(run.series(name), rel=tolerance), name
    start = load_file(settings.base / "model.safetensors")
    assert trained.keys() == tensors.keys() == start.keys()
    apart = way_apart(tensors, trained, start)
    assert max(apart.values()) < WAY, apart


def test_next_token_prediction_leaves_another_curve(program, plain, settings):
    """So the tolerances above would show a missing weight."""
    run, trained = program
    rows_RW, reference_RS, _, _ = plain
    report, tensors = plain_run(Namespace(**vars(settings) | {"objective": "ntp"}), rows_RW, reference_RS)
    assert torch.equal(report[:, 0], report[:, 1]), "its loss is the lm loss"
    assert (report[:, 1] / torch.tensor(run.series("remit loss")) - 1).abs().max() > 100 * LOSS
    assert min(way_apart(tensors, trained, load_file(settings.base / "model.safetensors")).values()) > 10 * WAY


@pytest.fixture(scope="module")
def store(material, flags, tmp_path_factory):
    """Written by the scorer."""
    folder = tmp_path_factory.mktemp("scored") / "store"
    score(1, folder, *material.remit(**flags, score_dtype="float32"))
    return folder


def test_a_store_of_the_scorer_has_the_scores_of_the_rows_that_the_loop_cuts(plain, settings, store):
    rows_RW, reference_RS, _, _ = plain
    stored = Namespace(**vars(settings) | {"score_store": store, "rl": None})
    torch.testing.assert_close(reference_nll(stored, rows_RW), reference_RS, rtol=1e-5, atol=1e-5)
    with pytest.raises(SystemExit, match="lacks rows"):
        reference_nll(stored, read_rows(Namespace(**vars(settings) | {"row_seed": 4})))


def test_the_file_is_a_program_that_runs_without_megatron(settings, plain, store, tmp_path):
    """From a Hugging Face folder and a store to a folder that transformers opens."""
    given = vars(settings) | {"score_store": store, "out": tmp_path / "out", "steps": 1}
    names = ("base", "data", "out", "lr", "min_lr", "seed", "row_seed", "seq_length", "batch", "steps", "score_store")
    words = [f"--{name.replace('_', '-')}={given[name]}" for name in names]
    command = [sys.executable, "-c", WITHOUT_MEGATRON, FILE, *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [float(number) for number in re.findall(r"-?\d+\.\d+", done.stdout)]
    assert found == pytest.approx(plain[2][0].tolist(), abs=1e-3), done.stdout
    start, end = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (settings.base, given["out"]))
    assert all(not torch.equal(end[name], start[name]) for name in start)
    assert (given["out"] / "tokenizer.json").is_file()


def test_the_file_has_at_most_80_lines():
    assert len(FILE.read_text().splitlines()) <= 80
