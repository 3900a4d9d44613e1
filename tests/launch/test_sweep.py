"""Several runs from one command: what is submitted, and what is refused."""

import json
import os
import shlex
import subprocess

import pytest

from tests.ranks import ROOT

SBATCH = """#!/bin/sh
run="$OBJECTIVE seed=$SEED ref=$RL_HF run=$RUN_DIR extra=$EXTRA_ARGS"
echo "$run models=$MODELS task=$TASK scores=$SCORES flags=$*" >> "$NOTES"
wc -l < "$NOTES"
"""


def sweep(folder, *arguments, **variables):
    for name in ("base", "rl", "sft"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "sbatch").write_text(SBATCH)
    (folder / "sbatch").chmod(0o755)
    given = {"BASE_HF": folder / "base", "RL_HF": folder / "rl", "CORPUS": folder / "corpus", "WORK": folder / "sweep"}
    given |= {"PATH": f"{folder}:{os.environ['PATH']}", "NOTES": folder / "notes"} | variables
    done = subprocess.run(
        ["bash", str(ROOT / "examples/sweep.sh"), *arguments],
        env=os.environ | {name: str(value) for name, value in given.items()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_each_arm_with_each_seed_and_then_the_evaluation(tmp_path):
    code, output = sweep(tmp_path, ARMS="ntp permute before-rl", SEEDS="1 2", CONTROL_HF=tmp_path / "sft")
    assert code == 0, output
    rows = (tmp_path / "notes").read_text().splitlines()
    work = tmp_path / "sweep"
    assert [row.split(" models=")[0] for row in rows[:-1]] == [
        f"ntp seed=1 ref={tmp_path}/rl run={work}/ntp-1 extra=",
        f"ntp seed=2 ref={tmp_path}/rl run={work}/ntp-2 extra=",
        f"remit seed=1 ref={tmp_path}/rl run={work}/permute-1 extra=--remit-control permute",
        f"remit seed=2 ref={tmp_path}/rl run={work}/permute-2 extra=--remit-control permute",
        f"remit seed=1 ref={tmp_path}/sft run={work}/before-rl-1 extra=",
        f"remit seed=2 ref={tmp_path}/sft run={work}/before-rl-2 extra=",
    ]
    assert f"models=ntp-1={work}/ntp-1/hf ntp-2={work}/ntp-2/hf permute-1=" in rows[-1]
    assert "--dependency=afterok:1:2:3:4:5:6 --kill-on-invalid-dep=yes examples/evaluate.sh" in rows[-1]


def test_the_corpus_is_scored_once_for_the_arms_that_read_scores(tmp_path):
    code, output = sweep(tmp_path, ARMS="ntp remit kd", SEEDS="1 2", SCORE_FIRST=1, SUITE="none", EXTRA_ARGS="--bf16")
    assert code == 0, output
    rows = (tmp_path / "notes").read_text().splitlines()
    work = tmp_path / "sweep"
    assert rows[0].startswith(f"remit seed= ref={tmp_path}/rl run={work}/scoring extra=--bf16 --row-seed 1 ")
    assert [row.split()[0] for row in rows[1:]] == ["ntp", "ntp", "remit", "remit", "kd", "kd"]
    assert all("--row-seed 1" in row for row in rows)
    assert ["--dependency=afterok:1" in row for row in rows[1:]] == [False, False, True, True, False, False]
    assert [f"task= scores={work}/scores" in row for row in rows[1:]] == [False, False, True, True, False, False]
    assert f"task=score scores={work}/scores" in rows[0]


def exported(folder, **note):
    """The exported model of a run; what its job has noted, if anything."""
    (folder / "hf").mkdir(parents=True)
    (folder / "hf/config.json").touch()
    if note:
        (folder / "job.json").write_text(json.dumps(note))


def submitted(folder):
    notes = folder / "notes"
    return [row.split()[0] for row in notes.read_text().splitlines()] if notes.exists() else []


@pytest.mark.parametrize("note", [{}, {"exported": 10}])
def test_what_is_there_is_not_run_again(note, tmp_path):
    exported(tmp_path / "sweep/ntp-1234", **note)
    code, output = sweep(tmp_path, SUITE="none", TRAIN_ITERS=10)
    assert code == 0 and f"ntp-1234: {tmp_path}/sweep/ntp-1234/hf is there" in output
    assert submitted(tmp_path) == ["remit"]


@pytest.mark.parametrize("step", [10, None])
def test_a_run_that_is_made_longer_or_trains_on_is_submitted_again(step, tmp_path):
    exported(tmp_path / "sweep/ntp-1234", exported=step)
    code, output = sweep(tmp_path, SUITE="none", TRAIN_ITERS=12)
    assert code == 0, output
    assert submitted(tmp_path) == ["ntp", "remit"]


def test_settings_that_no_job_takes_end_the_sweep(tmp_path):
    exported(tmp_path / "sweep/ntp-1234")
    code, output = sweep(tmp_path, SUITE="none", TRAIN_ITERS="many")
    assert code == 2 and "error: TRAIN_ITERS" in output and submitted(tmp_path) == []


def test_a_dry_run_prints_commands_that_a_shell_takes(tmp_path):
    code, output = sweep(tmp_path, "--dry-run", ARMS="permute", SBATCH_ARGS="--partition=gpu --time=1:00")
    assert code == 0 and not (tmp_path / "notes").exists()
    run, judge = (shlex.split(line) for line in output.splitlines())
    assert "EXTRA_ARGS=--remit-control permute" in run and "--partition=gpu" in run
    assert "--dependency=afterok:<permute-1234>" in judge and judge[-1] == "examples/evaluate.sh"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORK": ""}, "WORK is not set"),
        ({"RL_HF": ""}, "RL_HF is not set, which the arm remit reads"),
        ({"ARMS": "before-rl"}, "set CONTROL_HF to the model before RL"),
        ({"SEEDS": "1 two"}, "SEEDS: 'two' is not a whole number"),
        ({"SCRIPT": "examples/no.sh"}, "SCRIPT=examples/no.sh: no such file"),
    ],
)
def test_what_cannot_be_submitted_is_refused_before_anything_is(variables, message, tmp_path):
    code, output = sweep(tmp_path, **variables)
    assert output.startswith("error: ") and message in output
    assert code == 2 and not (tmp_path / "notes").exists()
