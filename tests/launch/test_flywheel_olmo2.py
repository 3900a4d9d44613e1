"""examples/flywheel_olmo2_1b: the chain of jobs, the commands of its stages, and how a stage ends.

open-instruct itself has not run here: its trainers are stand-ins.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time

import pytest

from tests.ranks import ROOT

FOLDER = ROOT / "examples/flywheel_olmo2_1b"
# Ai2's published numbers for OLMo-2-1B (open-instruct, docs/olmo2.md).
PUBLISHED = {
    "sft": {
        "--learning_rate": "3e-5",
        "--num_train_epochs": "2",
        "--warmup_ratio": "0.03",
        "--max_seq_length": "4096",
        "--per_device_train_batch_size": "2",
        "--gradient_accumulation_steps": "8",
    },
    "dpo": {
        "--learning_rate": "2.5e-6",
        "--num_epochs": "1",
        "--warmup_ratio": "0.1",
        "--max_seq_length": "2048",
        "--beta": "5",
        "--loss_type": "dpo_norm",
    },
    "rlvr1": {
        "--learning_rate": "5e-7",
        "--beta": "0.01",
        "--total_episodes": "2000000",
        "--num_samples_per_prompt_rollout": "16",
        "--num_unique_prompts_rollout": "48",
        "--response_length": "2048",
        "--dataset_mixer_list": "allenai/RLVR-GSM-MATH-IF-Mixed-Constraints",
        "--num_mini_batches": "2",
        "--deepspeed_stage": "2",
        "--deepspeed_zpg": "12",
    },
}
# The second stage differs by its data alone.
PUBLISHED["rlvr2"] = PUBLISHED["rlvr1"] | {"--dataset_mixer_list": "allenai/RLVR-MATH"}
# A trainer: it notes its command, and writes what would be there at its end.
TRAINER = """#!/usr/bin/env bash
echo "$PWD: $*" >> "$NOTES/commands"
[[ -z ${HANG:-} ]] || { touch "$NOTES/started"; sleep 3; }
words=" $*"
out=${words#* --output_dir }
out=${out%% *}
[[ -z ${INNER:-} ]] || out=$out/$INNER
mkdir -p "$out"
[[ -n ${NO_MODEL:-} ]] || echo '{}' > "$out/config.json"
exit "${STATUS:-0}"
"""


@pytest.fixture
def folder(tmp_path):
    for name in ("base", "rl", "in"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    for name in ("notes", "bin", "open-instruct/open_instruct", "open-instruct/.venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    for path in ("open-instruct/.venv/bin/accelerate", "bin/srun"):
        write_program(tmp_path / path, TRAINER)
    # Slurm hears the second try only.
    write_program(
        tmp_path / "bin/scontrol",
        '#!/bin/sh\necho "scontrol $*" >> "$NOTES/commands"\n'
        '[ "$(grep -c scontrol "$NOTES/commands")" -ge 2 ] || kill -PIPE $$\n',
    )
    write_program(
        tmp_path / "bin/sbatch",
        '#!/bin/sh\necho "$*" >> "$NOTES/sbatch"\necho $((100 + $(wc -l < "$NOTES/sbatch")))\n',
    )
    return tmp_path


def write_program(path, text):
    path.write_text(text)
    path.chmod(0o755)


def start(script, *arguments, folder, **variables):
    kept = {name: text for name, text in os.environ.items() if not name.startswith("SLURM")}
    given = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "NOTES": folder / "notes",
        "BASE_HF": folder / "base",
        "RL_HF": folder / "rl",
        "CORPUS": "0.6 dclm 0.4 math",
        "WORK": folder / "work",
        "OPEN_INSTRUCT": folder / "open-instruct",
        "PYTHON": "python3",
        "IN": folder / "in",
        "OUT": folder / "out",
    } | variables
    return subprocess.Popen(
        ["bash", str(FOLDER / script), *arguments],
        env=kept | {name: str(text) for name, text in given.items() if text is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(script, *arguments, **variables):
    process = start(script, *arguments, **variables)
    text, _ = process.communicate(timeout=60)
    return process.returncode, text


def printed(folder, **variables):
    """The jobs of a dry run, as (words of env and sbatch, words of the job's own command)."""
    status, text = run("submit.sh", "--dry-run", folder=folder, **variables)
    assert status == 0, text
    jobs = []
    for line in text.splitlines():
        if line.startswith("env "):
            jobs.append([shlex.split(line), []])
        else:
            jobs[-1][1] += shlex.split(line)
    return jobs


def name_of(words):
    return next(word for word in words if word.startswith("--job-name=")).removeprefix("--job-name=")


def test_the_dry_run_prints_each_job_and_its_command(folder):
    jobs = printed(folder, ROUNDS=1)
    names = ["midtrain", "judge-midtrain", "sft", "dpo", "rlvr1", "rlvr2", "judge-rl"]
    assert [name_of(words) for words, _ in jobs] == [f"remit-1-{name}" for name in names]
    assert all(
        command for words, command in jobs if "midtrain" != name_of(words).split("-")[-1] or "judge" in name_of(words)
    )
    assert not (folder / "notes/sbatch").exists()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_stage_has_the_published_numbers(folder, name):
    (command,) = (command for words, command in printed(folder, ROUNDS=1) if name_of(words) == f"remit-1-{name}")
    assert {flag: command[command.index(flag) + 1] for flag in PUBLISHED[name]} == PUBLISHED[name]


def test_each_stage_starts_from_the_one_before_and_the_next_round_from_its_rl_model(folder):
    jobs = {name_of(words): (words, command) for words, command in printed(folder)}
    first, second = folder / "work/remit-1", folder / "work/remit-2"
    chain = [
        ("sft", first / "midtrain/hf"),
        ("dpo", first / "sft"),
        ("rlvr1", first / "dpo"),
        ("rlvr2", first / "rlvr1"),
    ]
    for name, source in chain:
        command = jobs[f"remit-1-{name}"][1]
        assert command[command.index("--model_name_or_path") + 1] == str(source)
    words = jobs["remit-2-midtrain"][0]
    assert {f"RL_HF={first / 'rlvr2'}", f"BASE_HF={folder / 'base'}", f"RUN_DIR={second / 'midtrain'}"} < set(words)
    assert "CORPUS=0.6 dclm 0.4 math" in words


def test_every_job_waits_for_its_predecessor(folder):
    status, text = run("submit.sh", folder=folder, ROUNDS=1, SBATCH_ARGS="--partition=gpu")
    assert status == 0, text
    lines = (folder / "notes/sbatch").read_text().splitlines()
    waits = [re.search(r"--dependency=afterok:(\d+) --kill-on-invalid-dep=yes", line) for line in lines]
    # Jobs 101 to 107; what judges a model is not waited for.
    assert [found and int(found[1]) for found in waits] == [None, 101, 101, 103, 104, 105, 106]
    assert all("--partition=gpu" in line for line in lines)


def test_what_is_there_is_not_submitted_again(folder):
    for done in ("midtrain/hf", "sft"):
        (folder / "work/remit-1" / done).mkdir(parents=True)
        (folder / "work/remit-1" / done / "config.json").write_text("{}")
    names = [name_of(words) for words, _ in printed_jobs(folder)]
    assert names == ["remit-1-judge-midtrain", "remit-1-dpo", "remit-1-rlvr1", "remit-1-rlvr2", "remit-1-judge-rl"]


def printed_jobs(folder):
    status, text = run("submit.sh", "--dry-run", folder=folder, ROUNDS=1)
    assert status == 0, text
    return [(shlex.split(line), []) for line in text.splitlines() if line.startswith("env ")]


def test_the_baseline_goes_through_the_same_stages_without_a_reference(folder):
    jobs = printed(folder, OBJECTIVE="ntp", ROUNDS=1, RL_HF=None)
    assert name_of(jobs[2][0]) == "ntp-1-sft"
    status, text = run("submit.sh", "--dry-run", folder=folder, OBJECTIVE="ntp", ROUNDS=2, RL_HF=None)
    assert status == 2 and "set ROUNDS=1" in text


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CORPUS": None}, "CORPUS is not set"),
        ({"RL_HF": None}, "RL_HF is not set"),
        ({"RL_HF": "/no/model"}, "/no/model: no config.json in it; docs/tutorial-olmo2-1b.md"),
        ({"ROUNDS": "two"}, "ROUNDS is 'two'"),
    ],
)
def test_what_is_missing_is_one_line(folder, variables, message):
    status, text = run("submit.sh", "--dry-run", folder=folder, **variables)
    assert status == 2 and text.startswith("error: ") and text.count("\n") == 1 and message in text


def test_a_stage_writes_its_model_whole_and_only_once(folder):
    status, text = run("sft.sh", folder=folder, SLURM_JOB_ID=7)
    assert status == 0, text
    assert (folder / "out/config.json").exists() and not (folder / "out.part").exists()
    assert (folder / "notes/commands").read_text().startswith(f"{folder / 'open-instruct'}: launch ")
    status, text = run("sft.sh", folder=folder, SLURM_JOB_ID=7)
    assert status == 0 and "is there" in text
    assert len((folder / "notes/commands").read_text().splitlines()) == 1


@pytest.mark.parametrize("script", ["sft.sh", "dpo.sh", "rlvr.sh"])
def test_setup_runs_before_a_stages_command(script, folder):
    given = {"SLURM_JOB_ID": 7, "RLVR_STAGE": 1, "INNER": "rlvr1" if script == "rlvr.sh" else ""}
    # The stand-in for srun does not run what it is given.
    runs_it = '#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nSTATUS= exec "$@"\n'
    write_program(folder / "bin/srun", runs_it)
    status, text = run(script, folder=folder, SETUP='echo "brought on $PWD"; false', **given)
    assert status == 2 and f"brought on {folder}/open-instruct\nerror: SETUP failed\n" in text
    assert not (folder / "out").exists() and not (folder / "notes/commands").exists()


def test_a_stage_runs_with_what_setup_brings(folder):
    status, text = run("sft.sh", folder=folder, SLURM_JOB_ID=7, SETUP="export INNER=; echo brought")
    assert status == 0 and text.startswith("brought\n") and (folder / "out/config.json").exists()


def test_rlvr_takes_the_model_out_of_the_trainers_own_folder(folder):
    # What an interrupted start left behind, without a model.
    (folder / "out.part/models/rlvr1__1__100_checkpoints/step_50").mkdir(parents=True)
    status, text = run("rlvr.sh", folder=folder, SLURM_JOB_ID=7, RLVR_STAGE=1, INNER="rlvr1__1__200")
    assert status == 0, text
    assert (folder / "out/config.json").exists() and not (folder / "out.part").exists()
    assert "ray_node.sh" in (folder / "notes/commands").read_text()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"STATUS": "3"}, "the command ended with status 3"),
        ({"NO_MODEL": "1"}, "there is no model in"),
        ({"IN": "/no/model"}, "IN=/no/model: no model folder"),
        ({"OPEN_INSTRUCT": "/no/checkout"}, "not a checkout of open-instruct"),
        ({"SLURM_JOB_ID": None}, "this is a Slurm script"),
    ],
)
def test_a_stage_that_fails_leaves_no_model(folder, variables, message):
    status, text = run("dpo.sh", folder=folder, **{"SLURM_JOB_ID": 7} | variables)
    assert status == 2 and message in text
    assert not (folder / "out").exists()


def test_a_stage_goes_back_into_the_queue_before_its_time_ends(folder):
    process = start("sft.sh", folder=folder, SLURM_JOB_ID=7, HANG=1)
    deadline = time.monotonic() + 30
    while not (folder / "notes/started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    while (folder / "notes/commands").read_text().count("scontrol requeue 7") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The signal ends neither the trainer nor the stage: under Slurm the requeue does.
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and "back into the queue" in text and (folder / "out/config.json").exists()
    assert (folder / "notes/commands").read_text().count("scontrol requeue 7") == 2


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not there")
def test_shellcheck_has_nothing_to_say_about_the_scripts():
    scripts = [path for path in (*ROOT.glob("examples/*.sh"), *FOLDER.glob("*.sh"))]
    done = subprocess.run(["shellcheck", "-x", *map(str, scripts)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""
