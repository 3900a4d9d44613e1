"""What a step of the paper's jobs costs on fake CUDA tensors: peak memory, and kernels, bytes and operations by phase.

No time is measured, so that the figures are exact on any machine: a change of the program that makes a step dearer
shows here. ``golden.json`` holds them as they were last renewed (renew.py).

The jobs are those of ``examples/remit_*.sh`` with their own settings and the models' published shapes, but for
MICROBATCHES: every further one repeats the same kernels.
"""

import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from megatron_remit.launch.commands import Commands
from megatron_remit.launch.gpus import gpu
from megatron_remit.launch.settings import read as read_settings
from megatron_remit.launch.slurm import Allocation
from megatron_remit.launch.values import Host
from megatron_remit.simulate.run import simulate_run
from tests.ranks import ROOT

FILE = Path(__file__).with_name("golden.json")
JOBS = {"olmo1b": "olmo2_1b", "smollm3_3b": "smollm3_3b", "youtu_llm_2b": "youtu_llm_2b"}
"""The recipe of each script, and the folder of its model's config."""
MICROBATCHES = 2
PEAK_TOLERANCE = 0.02
COUNTS = ("kernels", "bytes", "flops")


def record(recipe, simulator):
    """The figures of one job's first rank."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / f"benchmarks/shapes/{JOBS[recipe]}/config.json", folder)
        given = {"BASE_HF": folder, "RL_HF": folder, "CORPUS": "corpus", "RUN_DIR": "run", "CONTAINER_IMAGE": "image"}
        settings = read_settings(given, recipe, Host(ROOT, ROOT / f"examples/remit_{recipe}.sh", Allocation()))
        gpus = settings.nodes * settings.gpus_per_node
        flags = Commands.of(settings).training_flags()
        sequences = settings.micro_batch_size * MICROBATCHES * gpus // (settings.tp * settings.pp)
        flags[flags.index("--global-batch-size") + 1] = str(sequences)
        ranks = simulate_run(Path(folder), Path(folder), gpus, flags, gpu(settings.gpu), simulator=simulator)
    figures = ranks["rank 0"]
    phases = {name: {count: phase[count] for count in COUNTS} for name, phase in figures["phases"].items()}
    return {"peak": figures["peak"], "phases": phases}


def versions():
    """What the figures depend on."""
    return {name: version(name) for name in ("torch", "megatron-core")}


def read():
    """What ``write`` wrote: the versions, and the figures by recipe."""
    content = json.loads(FILE.read_text())
    return content["versions"], content["jobs"]


def write(jobs):
    """The figures by recipe, with the versions."""
    FILE.write_text(json.dumps({"versions": versions(), "jobs": jobs}, indent=1) + "\n")


def differences(found, expected):
    """By figure, the relative difference; a phase that is in one of them only is 1."""
    moved = {"peak": found["peak"] / expected["peak"] - 1}
    for phase in sorted(found["phases"].keys() | expected["phases"].keys()):
        own, golden = found["phases"].get(phase), expected["phases"].get(phase)
        for count in COUNTS:
            if own is None or golden is None:
                moved[f"{phase}: {count}"] = 1.0
            else:
                moved[f"{phase}: {count}"] = own[count] / golden[count] - 1 if golden[count] else float(own[count] > 0)
    return moved
