"""The figures of 20 steps of each objective at fixed seeds, the machine that they depend on, and how far two differ.

A test that compares two runs of today's program cannot see a change that moves both. ``curves.json`` holds what the
program computed when it was last renewed (renew.py).
"""

import json
import platform
import re
from importlib.metadata import version
from pathlib import Path

import torch

from megatron_remit.objectives.registry import OBJECTIVES
from tests.ranks import pretrain

FILE = Path(__file__).with_name("curves.json")
STEPS = 20
FIGURES = {
    "ntp": ("lm loss", "grad-norm"),
    "remit": ("lm loss", "remit loss", "weight mean", "weight std", "grad-norm"),
    "rho1": ("lm loss", "rho1 loss", "grad-norm"),
    "kd": ("lm loss", "kd loss", "grad-norm"),
    "contrast": ("lm loss", "contrast loss", "weight mean", "weight std", "grad-norm"),
    "prift": ("lm loss", "prift loss", "weight mean", "weight std", "grad-norm"),
    "tokenclean": ("lm loss", "tokenclean loss", "kept delta mean", "grad-norm"),
    "eslm": ("lm loss", "eslm loss", "kept share", "grad-norm"),
}
"""What is compared, by objective. The loss of ntp is the lm loss; not every objective has weights."""
RUN = {
    "train_iters": STEPS,
    "optimizer": "adam",
    "lr": 1e-3,
    "min_lr": 1e-5,
    "lr_decay_style": "cosine",
    "adam_beta2": 0.95,
    "weight_decay": 0.1,
    "clip_grad": 1.0,
}

Curves = dict[str, list[float]]


def record(material, objective, *flags):
    """The curves of one objective; ``flags`` are added to the run's."""
    chosen = OBJECTIVES[objective]
    models = {"reference_load": material.reference} if chosen.needs_reference else {}
    if chosen.needs_base:
        models["reference_base_load"] = material.policy
    run = pretrain(1, *material.flags(**RUN, objective=objective, **models), *flags)
    return {name: run.series(name) for name in FIGURES[objective]}


def machine():
    """Where the same program gives the same bits: versions, kind of processor, and what torch uses of it."""
    entries = dict(re.findall(r"^(vendor_id|cpu family|model|model name)\s*: (.*)$", _processor(), re.MULTILINE))
    packages = ("torch", "megatron-core", "transformers", "numpy")
    return {
        "processor": ", ".join(f"{name} {value}" for name, value in sorted(entries.items())) or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **{name: version(name) for name in packages},
    }


def _processor():
    """Linux's description of the first core."""
    path = Path("/proc/cpuinfo")
    return path.read_text().split("\n\n")[0] if path.is_file() else ""


def read():
    """What ``write`` wrote: the machine, and the curves by objective."""
    content = json.loads(FILE.read_text())
    return content["machine"], content["curves"]


def write(curves):
    """The curves by objective, with this machine, one line for each figure."""
    text = json.dumps({"machine": machine(), "curves": curves}, indent=1)
    FILE.write_text(re.sub(r"\[[^\[\]]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text) + "\n")


def differences(found, expected):
    """By figure, the largest difference at a step relative to the expected value."""
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(expected, STEPS)
    return {
        name: max(abs(a - b) / abs(b) for a, b in zip(values, expected[name], strict=True))
        for name, values in found.items()
    }
