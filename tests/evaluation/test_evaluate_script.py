"""examples/evaluate.sh: the command that it prints, and its messages."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.ranks import ROOT

SCRIPT = ROOT / "examples/evaluate.sh"


def run(*arguments, script=SCRIPT, **variables):
    kept = {name: text for name, text in os.environ.items() if not name.startswith("SLURM")}
    given = {"MODELS": "ReMiT=runs/remit NTP=runs/ntp", "OUT": "results", "PYTHON": sys.executable} | variables
    environment = kept | {name: str(text) for name, text in given.items() if text is not None}
    return subprocess.run(["bash", str(script), *arguments], env=environment, capture_output=True, text=True)


def printed(**variables):
    done = run("--dry-run", **variables)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def test_the_dry_run_prints_the_command_of_all_models():
    assert printed() == [
        *(sys.executable, str(ROOT / "tools/evaluate.py"), "--out", "results", "--suite", "base", "--batch-size", "8"),
        *("--model", "ReMiT=runs/remit", "--model", "NTP=runs/ntp"),
    ]


def test_variables_become_flags():
    words = printed(
        SUITE="zero-shot",
        COLUMNS_OF_TABLE="GSM8K IFE",
        ALLOW_CODE_EXECUTION=1,
        LOCAL_DATA="data",
        EXTRA_ARGS="--limit 9",
    )
    flags = "--columns GSM8K IFE --allow-code-execution --local-data data --limit 9"
    assert words[-len(flags.split()) :] == flags.split()
    assert "zero-shot" in words


def test_each_task_of_an_array_has_its_share():
    task = {"SLURM_ARRAY_TASK_COUNT": 4, "SLURM_ARRAY_TASK_ID": 12, "SLURM_ARRAY_TASK_MIN": 10}
    assert printed(**task)[-2:] == ["--part", "3/4"]


@pytest.mark.parametrize("as_file", [False, True])
def test_setup_runs_before_the_command_and_its_failure_ends_the_job(as_file, tmp_path):
    (tmp_path / "python").write_text('#!/bin/sh\necho "$WORD: $*"\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "my setup.sh").write_text("export WORD=brought\n")
    setup = tmp_path / "my setup.sh" if as_file else "export WORD=brought"
    done = run(SETUP=setup, PYTHON=tmp_path / "python", SLURM_JOB_ID=7)
    assert done.stdout.startswith(f"brought: {ROOT}/tools/evaluate.py --out results "), done.stderr
    done = run(SETUP="false", PYTHON=tmp_path / "python", SLURM_JOB_ID=7)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: SETUP failed\n")


@pytest.mark.parametrize(("image", "before"), [("remit.sqsh", "python"), ("remit.sif", "apptainer")])
def test_setup_runs_inside_an_image_of_pyxis_and_before_apptainer(image, before):
    done = run("--dry-run", CONTAINER_IMAGE=image, CONTAINER_MOUNTS="/a:/a", PYTHON=None, SETUP="module load x")
    assert re.fullmatch(rf"srun --ntasks=1 .*bash -c \$'{{ module load x.* setup {before} .*\n", done.stdout)


def test_an_image_is_entered_through_srun():
    words = printed(CONTAINER_IMAGE="remit.sqsh", CONTAINER_MOUNTS="/a:/a", PYTHON=None)
    assert words[:6] == [
        *("srun", "--ntasks=1", "--container-image=remit.sqsh", "--container-mounts=/a:/a"),
        *("python", "/opt/megatron-remit/tools/evaluate.py"),
    ]
    words = printed(CONTAINER_IMAGE="remit.sif", CONTAINER_MOUNTS="/a:/a", PYTHON=None)
    assert words[:9] == [
        *("srun", "--ntasks=1", "apptainer", "exec", "--nv", "--no-home", "--bind", "/a:/a", "remit.sif"),
    ]


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--dry-run"], {"MODELS": None}, "MODELS is not set"),
        (["--dry-run"], {"OUT": None}, "OUT is not set"),
        (["--dryrun"], {}, "unknown argument '--dryrun'"),
        (["--dry-run"], {"PYTHON": "/no/python"}, "/no/python is not there"),
        ([], {}, "this is a Slurm script"),
    ],
)
def test_what_is_missing_is_one_line(arguments, variables, message):
    done = run(*arguments, **variables)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr


def test_a_copy_in_a_spool_folder_finds_the_project(tmp_path):
    shutil.copy(SCRIPT, tmp_path / "slurm_script")
    done = run("--dry-run", script=tmp_path / "slurm_script", SLURM_SUBMIT_DIR=ROOT)
    assert str(ROOT / "tools/evaluate.py") in done.stdout
    done = run("--dry-run", script=tmp_path / "slurm_script", SLURM_SUBMIT_DIR=tmp_path)
    assert "set REMIT_PROJECT" in done.stderr
