"""The simulation's own process: a rank's training steps on fake tensors, as a JSON file.

Run by ``simulate.run`` as ``python -m megatron_remit.programs.simulated_step TASK.json``, with the CUDA stand-in
preloaded.
"""

import argparse
import copy
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from megatron.core.datasets.utils import Split
from megatron.training import arguments, training

from megatron_remit import cpu, patches
from megatron_remit.data import datasets
from megatron_remit.launch.plan_checks import frozen_arguments, set_shape
from megatron_remit.programs import train
from megatron_remit.reference import model as reference_model
from megatron_remit.scoring import dataset
from megatron_remit.scoring.ahead import ScoreAhead
from megatron_remit.simulate import fake
from megatron_remit.simulate.ledger import Ledger

_STEPS = 2
"""The optimizer makes its state in the first step; the second is the one that is counted."""


class _Rows(torch.utils.data.Dataset):
    """Rows of zeros: what a token is changes neither shapes nor kernels."""

    split = index_split = Split.train

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return 10**7

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids_S = torch.zeros(self._length, dtype=torch.int64)
        return {"tokens": ids_S, "labels": ids_S, "loss_mask": torch.ones(self._length), "position_ids": ids_S}


def simulate(task: dict[str, Any]) -> dict[str, Any]:
    """The second step of the rank that ``task`` describes: the ledger's figures by phase."""
    if not cpu.has_cuda():
        raise RuntimeError("no CUDA device is seen: is the stand-in preloaded?")
    ledger = Ledger(task["bandwidth"], task["peak"], task["floor"])
    patches.apply()
    fake.install(ledger)
    for module in task["modules"]:
        importlib.import_module(module)
    _install_task(task, ledger)
    sys.argv = ["pretrain", *task["flags"]]
    mode = fake.Fake()
    result: dict[str, Any] = {}
    _install_steps(ledger, mode, result)
    with mode, ledger:
        train.main()
    return result


def _install_task(task: dict[str, Any], ledger: Ledger) -> None:
    """Shapes come from the Hugging Face folders, as in the plan; weights are not loaded."""
    base, reference = Path(task["base_hf"]), task["reference_hf"]
    validate = arguments.validate_args

    def validate_args(args: argparse.Namespace, *rest: Any, **kwargs: Any) -> Any:
        set_shape(args, base)
        return validate(args, *rest, **kwargs)

    def reference_arguments(args: argparse.Namespace, *_: Any) -> argparse.Namespace:
        own = frozen_arguments(args, Path(reference))
        args.remit_common_vocab_size = own.remit_common_vocab_size = min(args.remit_vocab_size, own.remit_vocab_size)
        return own

    def build_datasets(_numbers: object, here: Any) -> list[_Rows | None]:
        return [_Rows(task["seq_length"]) if here() else None, None, None]

    arguments.validate_args = validate_args
    train.reference_arguments = reference_arguments  # type: ignore[assignment]
    reference_model._load = lambda *_: None
    dataset.build_datasets = datasets.build_datasets = build_datasets  # type: ignore[assignment]
    for owner, name, phase in (
        (train, "build_reference", "reference weights"),
        (training, "setup_model_and_optimizer", "policy weights, gradients, optimizer"),
        (ScoreAhead, "_add_reference_column", "reference"),
        (ScoreAhead, "_add_base_column", "reference base"),
    ):
        setattr(owner, name, _named(getattr(owner, name), ledger, phase))


def _named(function: Any, ledger: Ledger, phase: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with ledger.named(phase):
            return function(*args, **kwargs)

    return call


def _install_steps(ledger: Ledger, mode: fake.Fake, result: dict[str, Any]) -> None:
    train_step = training.train_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        optimizer = kwargs["optimizer"] if "optimizer" in kwargs else args[3]
        step = optimizer.step
        optimizer.step = _named(step, ledger, "optimizer")
        ledger.start()
        mode.reads.clear()
        before = ledger.size
        with ledger.named("rest of the step"):
            out = train_step(*args, **kwargs)
        optimizer.step = step
        result.update(_figures(ledger, mode), live_before=before)
        return out

    training.train_step = counted


def _figures(ledger: Ledger, mode: fake.Fake) -> dict[str, Any]:
    phases = {
        name: {
            "kernels": ledger.kernels[name],
            "bytes": ledger.bytes[name],
            "flops": ledger.flops[name],
            "seconds": ledger.seconds[name],
            "peak": ledger.peaks[name],
        }
        for name in ledger.kernels
    }
    return {
        "peak": ledger.peak,
        "peak_phase": ledger.peak_phase,
        "phases": phases,
        "holders": ledger.largest(12),
        "operators": [[*key, size] for key, size in ledger.operators.most_common(12)],
        "host_reads": dict(mode.reads),
    }


def main() -> None:
    """Write the result, or the error and its line, to the task's file."""
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = Path(task["out"])
    try:
        result = simulate(copy.deepcopy(task))
    except (Exception, SystemExit) as error:
        out.write_text(json.dumps({"error": f"{type(error).__name__}: {error}", "line": fake.place_of(error)}))
        raise
    out.write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # torch's teardown would ask the device for more than it has


if __name__ == "__main__":
    main()
