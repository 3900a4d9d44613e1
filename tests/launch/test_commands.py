"""The command lines of a job, written out by hand, and where they run."""

import hashlib
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from megatron_remit.errors import UserError
from megatron_remit.launch.commands import Commands, import_folder, saved_step
from megatron_remit.launch.job import quote
from megatron_remit.launch.settings import read
from megatron_remit.launch.slurm import Allocation, Container, step
from megatron_remit.launch.values import Host
from tests.ranks import ROOT

SCRIPT = ROOT / "examples/remit_olmo1b.sh"
# The paper's run of OLMo-2-1B from its start, with /base, /rl and /corpus.
TRAINING = """
    --use-checkpoint-args --exit-on-missing-checkpoint
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model /imported/base-1/hf --objective remit
    --data-path /corpus --split 99,1,0 --seq-length 4096 --seed 1234
    --micro-batch-size 4 --global-batch-size 512 --train-iters 23842
    --lr 3e-4 --min-lr 1e-7 --lr-decay-style cosine --lr-warmup-iters 40
    --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0
    --tensor-model-parallel-size 1 --pipeline-model-parallel-size 1
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
    --save /run/checkpoints --save-interval 476 --exit-signal-handler
    --heartbeat /run/heartbeat.json --distributed-timeout-minutes 20 --flight-recorder-dump-path /run/logs/nccl-rank-
    --eval-interval 500
    --tensorboard-dir /run/tensorboard --tensorboard-log-interval 1 --log-interval 1
    --log-timers-to-tensorboard --log-throughput --log-memory-to-tensorboard
    --eval-iters 10
    --save-retain-interval 4760 --save-keep-last 3
    --bf16 --reference-load /imported/rl-1 --remit-epsilon 0.2 --reference-micro-batch-size 8
    --load /imported/base-1 --finetune
""".split()


def commands(saved=0, **variables):
    given = {"BASE_HF": "/", "RL_HF": "/", "CORPUS": "/corpus", "RUN_DIR": "/run", "CONTAINER_IMAGE": "image"}
    settings = read(given | variables, "olmo1b", Host(Path("/project"), SCRIPT, Allocation()))
    reference = None if settings.objective == "ntp" else Path("/imported/rl-1")
    return Commands(settings, Path("/imported/base-1"), reference, saved)


def without(words, *flags):
    """``words`` less ``flags``, each with its value if it has one."""
    kept, skipping = [], False
    for word in words:
        if word.startswith("--"):
            skipping = word in flags
        if not skipping:
            kept.append(word)
    return kept


def test_training_from_the_start():
    assert commands().training_flags() == TRAINING


def test_training_that_goes_on_loads_its_own_checkpoints():
    assert commands(saved=40).training_flags() == [*TRAINING[:-3], "--load", "/run/checkpoints"]


def test_ntp_has_no_reference():
    expected = without(TRAINING, "--reference-load", "--remit-epsilon", "--reference-micro-batch-size")
    expected[expected.index("remit")] = "ntp"
    assert commands(OBJECTIVE="ntp").training_flags() == expected


def test_layout_precision_and_extra_flags():
    expected = without(TRAINING, "--bf16", "--load", "--finetune")
    expected[expected.index("--tensor-model-parallel-size") + 1] = "2"
    expected.insert(expected.index("--reference-load"), "--sequence-parallel")
    expected += ["--lr", "1", "--recompute-activations", "--load", "/imported/base-1", "--finetune"]
    assert commands(TP="2", PRECISION="fp32", EXTRA_ARGS="--lr 1  --recompute-activations").training_flags() == expected


def test_several_validation_sets():
    expected = without(TRAINING, "--data-path", "--split", "--eval-iters")
    at = expected.index("--seq-length")
    expected[at:at] = [
        *("--train-data-path", "0.3", "/a", "0.7", "/b", "--valid-data-path", "/held/math", "/held/web"),
        *("--validation-set-names", "math", "web", "--full-validation", "--multiple-validation-sets"),
    ]
    made = commands(CORPUS="0.3 /a 0.7 /b", VALID="math=/held/math  web=/held/web", SPLIT="98,1,1")
    assert made.training_flags() == expected
    assert "/held:/held" in made.settings.container.mounts


@pytest.mark.parametrize(
    ("text", "message"),
    [("math", "VALID has math: expected NAME=PREFIX"), ("a=/x a=/y", "VALID has the name a twice")],
)
def test_validation_sets_that_have_no_name(text, message):
    with pytest.raises(UserError, match=message):
        commands(VALID=text)


def test_experts_are_spread_over_ranks():
    expected = [*TRAINING]
    at = expected.index("--bf16")
    expected[at:at] = ["--expert-model-parallel-size", "4"]
    assert commands(EP="4").training_flags() == expected


def test_saves_and_what_is_kept():
    """By tokens, in whole steps; what is kept, in whole saves."""
    flags = commands(GLOBAL_BATCH_SIZE="8192", SEQ_LENGTH="8192").training_flags()  # 64M tokens in a step
    assert flags[flags.index("--save-interval") + 1] == "14"
    assert flags[flags.index("--save-retain-interval") + 1] == "154"  # 10.3B tokens
    flags = commands(SAVE_TOKENS="1", KEEP_TOKENS="1", KEEP_LAST="5").training_flags()
    assert flags[flags.index("--save-interval") + 1] == flags[flags.index("--save-retain-interval") + 1] == "1"
    assert flags[flags.index("--save-keep-last") + 1] == "5"
    assert not {"--save-retain-interval", "--save-keep-last"} & set(commands(KEEP_TOKENS="0").training_flags())
    assert commands(SAVE_INTERVAL="9").settings.keep_interval % 9 == 0
    assert set(commands(ASYNC_SAVE="1").training_flags()) - set(TRAINING) == {
        *("--async-save", "--use-persistent-ckpt-worker")
    }


def test_a_launcher_runs_on_each_node():
    assert commands(NODES="2").work() == [
        *("python", "-m", "megatron_remit.launch.node", "/run/logs", "--nnodes", "2", "--nproc-per-node", "8"),
        *("--master-addr", "FIRST_NODE", "--master-port", "20000", "-m", "megatron_remit.pretrain"),
        *TRAINING,
    ]


def test_the_tools_run_inside_the_image_or_from_the_project():
    tool = "/opt/megatron-remit/tools"
    assert commands().plan() == [
        *("python", f"{tool}/plan_run.py", "--base-hf", "/", "--gpus", "32", "--gpus-per-node", "8"),
        *("--gpu", "H100-80GB", "--max-epochs", "20", "--reference-hf", "/", "--", *TRAINING),
    ]
    assert "--reference-hf" not in commands(OBJECTIVE="ntp").plan()
    assert commands().import_model(Path("/rl"), Path("/imported/rl-1")) == [
        *("python", f"{tool}/import_hf.py", "--hf", "/rl", "--out", "/imported/rl-1")
    ]
    assert commands(CONTAINER_IMAGE="", PYTHON="sh").export() == [
        *("sh", "/project/tools/export_hf.py", "--megatron", "/run/checkpoints"),
        *("--hf-template", "/imported/base-1/hf", "--out", "/run/hf", "--overwrite"),
    ]


def test_srun():
    assert step(["python", "x"], 3, None) == [
        *("srun", "--ntasks-per-node=1", "--cpu-bind=none", "--kill-on-bad-exit=1", "--nodes=3", "--ntasks=3"),
        *("python", "x"),
    ]
    assert step(["python"], 1, Container("image", "/a:/a", "/opt/x")) == [
        *("srun", "--ntasks-per-node=1", "--cpu-bind=none", "--kill-on-bad-exit=1", "--container-image=image"),
        *("--container-mounts=/a:/a", "--container-workdir=/opt/x", "--no-container-mount-home"),
        *("--nodes=1", "--ntasks=1", "python"),
    ]


def test_apptainer_runs_the_image_on_each_node():
    container = commands(CONTAINER_IMAGE="/images/remit.sif", CONTAINER_MOUNTS="/a:/b").settings.container
    words = step(["python"], 2, container)
    at = words.index("--ntasks=2") + 1
    assert words[:at] == step([], 2, None)
    assert words[at:] == [
        *("apptainer", "exec", "--nv", "--no-home", "--bind", container.mounts, "--pwd", "/opt/megatron-remit"),
        *("/images/remit.sif", "python"),
    ]
    assert container.mounts.endswith(",/a:/b") and "/run:/run" in container.mounts
    older = commands(CONTAINER_IMAGE="x", CONTAINER_RUNTIME="singularity").settings.container
    assert "singularity" in step(["python"], 1, older) and commands().settings.container.runtime == "pyxis"


def run_after(setup, *command):
    words = step(command, 1, None, setup)
    done = subprocess.run(words[words.index("bash") :], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_setup_runs_before_the_command_and_as_the_same_process(tmp_path):
    assert run_after("export A='it is'; B=1", "sh", "-c", 'echo "$A" "$@"', "x", "a b") == (0, "it is a b\n")
    before, after = run_after("echo $$", "sh", "-c", "echo $$")[1].split()
    assert before == after  # so that signals reach the command
    file = tmp_path / "set up.sh"
    file.write_text("export A=7 # a comment")
    text = commands(SETUP=str(file)).settings.setup
    assert run_after(text, "sh", "-c", "echo $A") == (0, "7\n")
    assert run_after("echo loading; false", "echo", "no") == (2, "loading\nerror: SETUP failed\n")


def test_a_printed_command_can_be_pasted_into_a_shell():
    words = ["srun", "--mounts=/my models:/b", "python", "--lr", "3e-4", "-m", "it's", ""]
    text = quote(words)
    assert text.splitlines()[0] == "srun \\" and "    --lr 3e-4 \\" in text.splitlines()
    assert shlex.split(text.replace("\\\n", "")) == words


def test_an_import_is_named_after_the_content(tmp_path):
    hf = tmp_path / "hf"
    hf.mkdir()
    (hf / "inner").mkdir()
    for name, text in (
        ("tokenizer_config.json", "b"),
        ("tokenizer.json", "aa"),
        ("config.json", "{}"),
        (".hidden", ""),
    ):
        (hf / name).write_text(text)
        os.utime(hf / name, (1_700_000_000.7, 1_700_000_000.7))
    # The name since the first version, so that imports are found again.
    content = f"{hf}\n.hidden 0 1700000000\nconfig.json 2 1700000000\ntokenizer.json 2 1700000000\n"
    content += "tokenizer_config.json 1 1700000000\n"
    first = import_folder(hf, Path("/imported"))
    assert first.name == f"hf-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    os.utime(hf / "config.json", (1_700_000_000.1, 1_700_000_000.1))
    assert import_folder(hf, Path("/imported")) == first  # whole seconds
    os.utime(hf / "config.json", (1_700_000_001, 1_700_000_001))
    second = import_folder(hf, Path("/imported"))
    (hf / "config.json").write_text("{} ")
    os.utime(hf / "config.json", (1_700_000_001, 1_700_000_001))
    assert len({first, second, import_folder(hf, Path("/imported"))}) == 3


def test_the_last_saved_step(tmp_path):
    assert saved_step(tmp_path) == 0
    tracker = tmp_path / "checkpoints/latest_checkpointed_iteration.txt"
    tracker.parent.mkdir()
    tracker.write_text("120\n")
    assert saved_step(tmp_path) == 120
    tracker.write_text("")
    with pytest.raises(UserError, match=r"latest_checkpointed_iteration\.txt: '' is not the number of a step"):
        saved_step(tmp_path)
