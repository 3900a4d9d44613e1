"""The hours and the disk that the tutorials name are those that the plan computes for their models and scripts."""

import re
import shutil

import pytest

from megatron_remit.launch.commands import Commands
from megatron_remit.launch.plan import plan_run
from megatron_remit.launch.settings import read
from megatron_remit.launch.slurm import Allocation
from megatron_remit.launch.values import Host
from tests.hf_models import make_tokenizer
from tests.launch.planned import Planned
from tests.ranks import ROOT


@pytest.mark.parametrize(
    ("page", "recipe", "shape"),
    [("tutorial-olmo2-1b.md", "olmo1b", "olmo2_1b"), ("tutorial-olmo3-7b.md", "olmo3_7b", "olmo3_7b")],
)
def test_what_a_tutorial_says_of_its_cost(page, recipe, shape, tmp_path):
    for name in ("base", "rl"):
        make_tokenizer(tmp_path / name, 515)
        shutil.copy(ROOT / "benchmarks/shapes" / shape / "config.json", tmp_path / name)
    corpus = Planned(tmp_path).corpus("corpus", 100_000_000_000)
    given = {"BASE_HF": f"{tmp_path}/base", "RL_HF": f"{tmp_path}/rl", "CORPUS": corpus, "RUN_DIR": f"{tmp_path}/run"}
    settings = read(
        given | {"CONTAINER_IMAGE": "image"}, recipe, Host(ROOT, ROOT / f"examples/remit_{recipe}.sh", Allocation())
    )
    gpus = settings.nodes * settings.gpus_per_node
    text = plan_run(settings.base_hf, settings.rl_hf, gpus, Commands.of(settings).training_flags())
    hours, long = re.search(r"^time +([\d,]+) GPU-hours, ([\d.]+ \w+)", text, re.MULTILINE).groups()
    count, total = re.search(r"(\d+) checkpoints of [\d.]+ GB in .*: ([\d.,]+) GB", text).groups()
    found = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert f"| GPUs | {hours} hours of an H100 " in found and f", {long} on {settings.nodes} nodes of 8" in found
    rounded = f"{round(float(total.replace(',', '')), -1):,.0f}"
    assert f"| disk | {rounded} GB for the {count} checkpoints that stay" in found, text
