"""A blend of two sources whose tokens tell them apart, runs on it, and what they wrote."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import VOCABULARY, write_documents
from tests.ranks import run_job

STEPS = 30
BORDER = 260
"""Tokens below are those of the source ``low``, from here on those of ``high``; 0 ends documents of both."""
# The policy stays as it was imported: a plain loop can compute each step's figures.
STILL = {"lr": 1e-12, "train_iters": STEPS}
EVERY_STEP = {"watch_histogram_interval": 1, "watch_token_interval": 1}


def write_blend(folder):
    """Two corpora; the arguments of ``--data-path``, which give ``high`` three rows of four."""
    draw = numpy.random.default_rng(3)
    for name, first, last in (("low", 2, BORDER), ("high", BORDER, VOCABULARY)):
        rows = [numpy.append(draw.integers(first, last, int(draw.integers(3, 60))), 0) for _ in range(300)]
        write_documents(folder / name, [torch.from_numpy(row) for row in rows])
    return ["0.25", folder / "low", "0.75", folder / "high"]


@dataclass
class Watched:
    """What a run left."""

    output: str
    scalars: dict[str, list[tuple[int, float]]]
    histograms: dict
    texts: dict
    tokens: list[dict]


def run(material, blend, save, ranks=1, module="megatron_remit.pretrain", check=True, **overrides):
    """Train on the blend; read back all that it wrote."""
    flags = material.remit(
        **{"data_path": None, "save": save, "save_interval": STEPS, "no_save_optim": True} | STILL | overrides
    )
    with tempfile.TemporaryDirectory() as logs:
        command = [*map(str, flags), "--data-path", *map(str, blend), "--tensorboard-dir", logs]
        done = run_job(ranks, module=module, command_line=[*command, "--tensorboard-log-interval", "1"])
        assert done.returncode == 0 or not check, done.failure()
        # Every value: by default TensorBoard draws a sample.
        events = EventAccumulator(logs, {"scalars": 0, "histograms": 0, "tensors": 0}).Reload()
        scalars = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        histograms = {tag: events.Histograms(tag) for tag in events.Tags()["histograms"]}
        texts = {
            tag: [(one.step, one.tensor_proto.string_val[0].decode()) for one in events.Tensors(tag)]
            for tag in events.Tags()["tensors"]
        }
    file = Path(save) / "tokens.jsonl"
    tokens = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return Watched(done.output, scalars, histograms, texts, tokens)
