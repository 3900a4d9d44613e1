"""The variables of the job scripts: defaults, checks, what follows from them, and the table in docs/cluster.md."""

import re
from pathlib import Path

import pytest

from megatron_remit.errors import UserError
from megatron_remit.launch.settings import RECIPES, Settings, read
from megatron_remit.launch.slurm import Allocation
from megatron_remit.launch.values import WITHOUT_REFERENCE, Host
from megatron_remit.launch.variables import VARIABLES
from megatron_remit.objectives.registry import OBJECTIVES
from tests.ranks import ROOT


@pytest.fixture
def folder(tmp_path):
    for name in ("base", "rl"):
        (tmp_path / name).mkdir()
    return tmp_path


def settings(folder, recipe="olmo1b", allocation=None, **variables) -> Settings:
    given = {
        "BASE_HF": f"{folder}/base",
        "RL_HF": f"{folder}/rl",
        "CORPUS": f"{folder}/corpus",
        "RUN_DIR": f"{folder}/run",
        "CONTAINER_IMAGE": "image",
    }
    script = ROOT / f"examples/remit_{recipe}.sh"
    return read(given | variables, recipe, Host(Path("/project"), script, allocation or Allocation()))


def test_every_row_is_a_field_and_every_field_a_row():
    fields = set(Settings.__dataclass_fields__) - {"project"}
    assert fields == {variable.name.lower() for variable in VARIABLES}


def test_defaults(folder):
    found = settings(folder)
    assert (found.objective, found.epsilon, found.seed) == ("remit", "0.2", "1234")
    assert (found.min_lr, found.warmup_iters) == ("1e-7", "40")
    assert (found.tokens, found.train_iters, found.precision, found.split) == (50_000_000_000, 23842, "bf16", "99,1,0")
    assert (found.tp, found.pp, found.nodes, found.gpus_per_node, found.max_restarts) == (1, 1, 4, 8, 100)
    assert (found.save_interval, found.eval_interval, found.eval_iters, found.extra_args) == (476, "500", "10", "")
    assert (found.master_addr, found.master_port) == ("FIRST_NODE", "20000")
    assert (found.container_project, found.python, found.venv) == ("/opt/megatron-remit", "python", "/project/.venv")
    assert (found.run_dir, found.import_dir) == (folder / "run", folder / "imported")
    assert found.environment == {
        "OMP_NUM_THREADS": "1",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


@pytest.mark.parametrize(
    ("recipe", "expected", "nodes"),
    [
        ("olmo1b", (4096, 512, "3e-4", 4, 8), 4),
        ("smollm3_3b", (8192, 256, "2e-4", 1, 2), 8),
        ("youtu_llm_2b", (8192, 8192, "2e-4", 1, 2), 16),
    ],
)
def test_the_recipes(recipe, expected, nodes, folder):
    found = settings(folder, recipe)
    sizes = (found.seq_length, found.global_batch_size, found.lr)
    assert (*sizes, found.micro_batch_size, found.reference_micro_batch_size) == expected
    assert found.nodes == nodes


def test_there_is_a_script_for_each_recipe():
    assert {path.name for path in (ROOT / "examples").glob("remit_*.sh")} == {f"remit_{name}.sh" for name in RECIPES}


def test_the_environment_wins_over_the_recipe_and_nothing_is_not_a_value(folder):
    found = settings(folder, LR="1", SEQ_LENGTH="8", GLOBAL_BATCH_SIZE="", TOKENS="4097", TP="2")
    assert (found.lr, found.seq_length, found.global_batch_size, found.tp) == ("1", 8, 512, 2)
    assert found.train_iters == 2  # 4097 tokens in steps of 4096


def test_slurm_gives_nodes_and_gpus(folder):
    allocation = Allocation(job="123456", nodes="6", gpus_per_node="4")
    divides = {"GLOBAL_BATCH_SIZE": "480"}
    found = settings(folder, allocation=allocation, NODES="2", MASTER_ADDR="10.0.0.1", **divides)
    assert (found.nodes, found.gpus_per_node, found.master_addr, found.master_port) == (6, 4, "10.0.0.1", "23456")
    assert settings(folder, allocation=allocation, GPUS_PER_NODE="1", MASTER_PORT="99", **divides).gpus_per_node == 1
    assert settings(folder, NODES="2").nodes == 2


def test_a_reference_is_needed_except_for_ntp(folder):
    with pytest.raises(UserError, match="RL_HF is not set: give the Hugging Face folder of the RL model"):
        settings(folder, RL_HF="")
    assert settings(folder, RL_HF="", OBJECTIVE="ntp").rl_hf is None
    assert settings(folder, RL_HF="", OBJECTIVE="eslm").rl_hf is None


def test_the_objectives_without_a_reference_are_those_of_the_program():
    named = {name for name, objective in OBJECTIVES.items() if not objective.needs_reference}
    assert named == set(WITHOUT_REFERENCE)


def test_paths_become_whole_and_links_are_followed(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "linked").symlink_to("base")
    found = settings(folder, BASE_HF="linked", RUN_DIR="runs/one", CORPUS="0.3 corpus 1e-1 data/more .5 third")
    assert found.base_hf == folder / "base"
    assert (found.run_dir, found.import_dir) == (folder / "runs/one", folder / "runs/imported")
    assert found.data_path == ["0.3", f"{folder}/corpus", "1e-1", f"{folder}/data/more", ".5", f"{folder}/third"]


def test_the_container_gets_each_folder_once_and_the_users_own(folder):
    container = settings(folder, CONTAINER_MOUNTS="/a:/a,/b:/c", CONTAINER_PROJECT="/opt/x").container
    parts = [folder, folder / "base", folder / "imported", folder / "rl", folder / "run"]
    assert container.mounts == ",".join([f"{part}:{part}" for part in parts] + ["/a:/a,/b:/c"])
    assert (container.image, container.folder) == ("image", "/opt/x")


@pytest.mark.parametrize(
    "name",
    [
        *("SEQ_LENGTH", "GLOBAL_BATCH_SIZE", "MICRO_BATCH_SIZE", "REFERENCE_MICRO_BATCH_SIZE", "TOKENS", "TRAIN_ITERS"),
        *("TP", "PP", "NODES", "GPUS_PER_NODE", "SAVE_INTERVAL"),
    ],
)
@pytest.mark.parametrize("text", ["0", "two", "1.5", "-1", "01"])
def test_whole_numbers_above_zero(name, text, folder):
    with pytest.raises(UserError, match=f"{name} is '{text}': expected a whole number above 0"):
        settings(folder, **{name: text})


@pytest.mark.parametrize(("steps", "warmup"), [("23842", "40"), ("746", "37"), ("19", "0")])
def test_the_warm_up_is_that_of_a_fresh_adam_and_at_most_a_twentieth_of_the_run(steps, warmup, folder):
    assert settings(folder, TRAIN_ITERS=steps).warmup_iters == warmup
    assert settings(folder, TRAIN_ITERS=steps, WARMUP_ITERS="7").warmup_iters == "7"


@pytest.mark.parametrize(
    ("given", "proposal"),
    [
        ({"NODES": "3"}, r"take 2 or 4 nodes, or GLOBAL_BATCH_SIZE=480"),
        ({"NODES": "3", "TP": "2"}, r"take 2 or 4 nodes, or GLOBAL_BATCH_SIZE=528"),
        ({"NODES": "1", "GLOBAL_BATCH_SIZE": "7"}, r"take GLOBAL_BATCH_SIZE=32$"),
    ],
)
def test_a_number_of_nodes_that_does_not_divide_gets_a_proposal(given, proposal, folder):
    with pytest.raises(UserError, match=rf"^NODES={given['NODES']} with 8 GPUs each: .*{proposal}"):
        settings(folder, **given)
    assert settings(folder, **given, EXTRA_ARGS="--context-parallel-size 3").extra_args


def test_durations_and_switches(folder):
    found = settings(folder, HANG_MINUTES="0.3", RETRY_SECONDS="0", ASYNC_SAVE="1")
    assert (found.hang_minutes, found.retry_seconds, found.async_save) == (0.3, 0.0, True)
    assert [settings(folder, HANG_MINUTES=text).timeout_minutes for text in ("30", "0.3", "0")] == [20, 1, 10]
    with pytest.raises(UserError, match="HANG_MINUTES is 'soon': expected a number, 0 or above"):
        settings(folder, HANG_MINUTES="soon")
    with pytest.raises(UserError, match="ASYNC_SAVE is 'yes': expected 0 or 1"):
        settings(folder, ASYNC_SAVE="yes")


def test_no_restarts_at_all_can_be_asked_for(folder):
    assert settings(folder, MAX_RESTARTS="0").max_restarts == 0
    with pytest.raises(UserError, match="MAX_RESTARTS is 'many': expected a whole number"):
        settings(folder, MAX_RESTARTS="many")


def test_python_is_looked_up_on_the_host_only_without_a_container(folder):
    with pytest.raises(UserError, match="/nowhere/bin/python is not there: set VENV to a virtual environment"):
        settings(folder, CONTAINER_IMAGE="", VENV="/nowhere")
    assert settings(folder, PYTHON="/nowhere/python").python == "/nowhere/python"


def test_an_unknown_recipe_is_named(folder):
    with pytest.raises(UserError, match="recipe 'gpt5': expected one of olmo1b, smollm3_3b, youtu_llm_2b"):
        settings(folder, "gpt5")


def test_the_guide_has_the_table():
    """A failure shows the rows as docs/cluster.md must have them."""
    text = (ROOT / "docs/cluster.md").read_text()
    documented = re.findall(r"^\| `[A-Z_]+` \|.*$", text, re.MULTILINE)
    assert documented == [_row(variable) for variable in VARIABLES]


def _row(variable):
    default = f"`{variable.default}`" if variable.default else "empty"
    if variable.default is None:
        default = "needed"
    return f"| `{variable.name}` | {variable.shown or default} | {variable.meaning} |"
