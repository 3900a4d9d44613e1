"""The job scripts without Slurm: the paper's settings in the command that --dry-run prints, and the messages."""

import ast
import json
import os
import subprocess
import sys

import pytest

from megatron_remit.data.tokenizer import folder_fingerprint
from tests.conftest import write_corpus
from tests.hf_models import make_olmo2
from tests.ranks import ROOT
from tests.slurm.jobs import TINY

# What runs on the host of the first node, outside a container.
HOST_MODULES = (
    *("__init__", "commands", "ending", "failures", "history", "job", "notes", "runner", "settings", "slurm"),
    *("status", "training", "values", "variables", "watchdog"),
)
# The paper, section 5.1 and appendix D: learning rate, sequence length, tokens a step, tokens in all; cosine to 1e-7.
# OLMo-3: Ai2's mid-training, src/scripts/train/OLMo3/OLMo3-7B-midtraining.py of OLMo-core.
SETTINGS = {
    "remit_olmo1b.sh": ("3e-4", 4096, 2 * 2**20, 50_000_000_000),
    "remit_smollm3_3b.sh": ("2e-4", 8192, 2 * 2**20, 50_000_000_000),
    "remit_youtu_llm_2b.sh": ("2e-4", 8192, 64 * 2**20, 50_000_000_000),
    "remit_olmo3_7b.sh": ("2.0712352850360292e-4", 8192, 2**21, 100_000_000_000),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    make_olmo2(folder / "base")
    make_olmo2(folder / "rl", seed=2)
    return folder


def run(script, *arguments, **variables):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / script), *arguments],
        capture_output=True,
        text=True,
        env=kept | {key: str(value) for key, value in variables.items()},
        timeout=240,
    )
    return done.returncode, done.stdout + done.stderr


def settings(folder, **variables):
    return {
        "BASE_HF": folder / "base",
        "RL_HF": folder / "rl",
        "CORPUS": folder / "corpus",
        "RUN_DIR": folder / "run",
        "PYTHON": sys.executable,
    } | variables


@pytest.mark.parametrize("script", SETTINGS)
def test_the_printed_command_has_the_published_settings(script, folder):
    rate, length, tokens, in_all = SETTINGS[script]
    status, text = run(script, "--dry-run", **settings(folder, CONTAINER_IMAGE="image.sqsh"))
    assert status == 0 and text.startswith("srun "), text
    steps = -(-in_all // tokens)
    for flags in (
        f"--lr {rate}",
        "--min-lr 1e-7",
        "--lr-decay-style cosine",
        f"--seq-length {length}",
        f"--global-batch-size {tokens // length}",
        f"--train-iters {steps}",
        "--remit-epsilon 0.2",
        "--objective remit",
        "--bf16",
        "--exit-signal-handler",
        "--finetune",
    ):
        assert f"    {flags}" in text.replace(" \\\n", "\n").splitlines(), f"{flags}\n{text}"


def test_a_container_gets_the_folders_of_the_run(folder):
    _, text = run(
        "remit_olmo1b.sh",
        "--dry-run",
        **settings(folder, CONTAINER_IMAGE="image.sqsh", CONTAINER_MOUNTS="/scratch:/scratch"),
    )
    mounts = next(line for line in text.splitlines() if "--container-mounts" in line)
    for part in (folder / "base", folder / "rl", folder / "run", folder / "imported", folder, "/scratch"):
        assert f"{part}:{part}" in mounts
    assert "--container-image=image.sqsh" in text and "--no-container-mount-home" in text


def test_relative_paths_and_blends_become_whole_paths(folder, monkeypatch):
    monkeypatch.chdir(folder)
    _, text = run(
        "remit_olmo1b.sh",
        "--dry-run",
        **settings(
            folder, BASE_HF="base", RL_HF="rl", RUN_DIR="run", CORPUS="0.3 corpus 1 data/more", CONTAINER_IMAGE="image"
        ),
    )
    assert f"--data-path 0.3 {folder}/corpus 1 {folder}/data/more" in text
    assert f"--save {folder}/run/checkpoints" in text
    mounts = next(line for line in text.splitlines() if "--container-mounts" in line)
    assert all(f"{part}:{part}" in mounts for part in (folder / "base", folder / "rl", folder, folder / "data"))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"BASE_HF": ""}, "BASE_HF is not set: give the Hugging Face folder of the model to train"),
        ({"RL_HF": ""}, "RL_HF is not set"),
        ({"CORPUS": ""}, "CORPUS is not set"),
        ({"RUN_DIR": ""}, "RUN_DIR is not set"),
        ({"BASE_HF": "/nowhere"}, "BASE_HF=/nowhere: no such folder"),
        ({"PYTHON": "/nowhere/python"}, "/nowhere/python is not there: set VENV"),
        ({"TP": "two"}, "TP is 'two': expected a whole number above 0"),
    ],
)
def test_messages_name_the_variable(variables, message, folder):
    status, text = run("remit_olmo1b.sh", "--dry-run", **settings(folder, **variables))
    assert status == 2 and f"error: {message}" in text


def test_the_script_is_not_run_by_hand(folder):
    status, text = run("remit_olmo1b.sh", **settings(folder))
    assert status == 2 and "submit it with sbatch" in text
    assert not (folder / "run").exists()


@pytest.mark.slow
def test_a_dry_run_checks_the_corpus(folder):
    status, text = run("remit_olmo1b.sh", "--dry-run", **settings(folder, NODES=1, **TINY))
    assert status == 2 and f"error: {folder}/corpus.bin: no such file" in text


def test_unknown_arguments_are_refused(folder):
    for arguments in (["--dryrun"], ["--simulate"], ["--dry-run", "--fast"]):
        status, text = run("remit_olmo1b.sh", *arguments, **settings(folder))
        assert status == 2 and f"error: unknown arguments '{' '.join(arguments)}'" in text


@pytest.mark.slow
def test_a_dry_run_simulates_a_step_of_the_job_when_asked(folder, tmp_path):
    manifest = {"tokenizer_fingerprint": folder_fingerprint(folder / "base"), "tokens": 61_234_567_890}
    write_corpus(tmp_path / "corpus", 515)
    (tmp_path / "corpus.json").write_text(json.dumps(manifest))
    variables = settings(folder, CORPUS=tmp_path / "corpus", NODES=2, **TINY)
    planned = run("remit_olmo1b.sh", "--dry-run", **variables)
    status, text = run("remit_olmo1b.sh", "--dry-run", "--simulate", **variables)
    assert status == planned[0] == 0 and "rank 0: peak" not in planned[1], text
    for found in ("policy backward", "waits of the host for the GPU", "tokens/s a GPU"):
        assert found in text.split("rank 0: peak")[1]


def test_the_job_needs_the_standard_library_only(folder):
    """With a container the host may have no other Python than its own: without site-packages nothing else is found."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); from megatron_remit.launch.job import main; main()"
    script = ROOT / "examples/remit_olmo1b.sh"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, str(ROOT), str(script), "olmo1b", "--dry-run"],
        capture_output=True,
        text=True,
        env=os.environ | {key: str(value) for key, value in settings(folder, CONTAINER_IMAGE="image").items()},
    )
    assert done.returncode == 0 and done.stdout.startswith("srun "), done.stderr


@pytest.mark.parametrize("module", ["errors", "heartbeat", *(f"launch/{name}" for name in HOST_MODULES)])
def test_the_job_is_written_for_python_3_9(module):
    source = (ROOT / f"megatron_remit/{module}.py").read_text()
    ast.parse(source, feature_version=(3, 9))
    # Annotations such as `Path | None` are not evaluated.
    assert module in ("errors", "launch/__init__") or "from __future__ import annotations" in source


def test_an_old_python_on_the_host_is_refused(folder, tmp_path):
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    status, text = run("remit_olmo1b.sh", "--dry-run", **settings(folder, CONTAINER_IMAGE="image", PATH=path))
    assert status == 2 and "error: the host needs python3, version 3.9 or later" in text
