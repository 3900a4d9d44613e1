"""The simulation's own process: a rank's training steps on fake tensors, as a JSON file.

``simulate.run`` starts it as ``python -m megatron_remit.programs.simulated_step FD``, with the CUDA stand-in preloaded,
and sends its tasks over the connection FD. Each task runs in a fork, so that it finds a process that has imported all
and run nothing.
"""

import argparse
import gc
import importlib
import json
import os
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from megatron.core.datasets.utils import Split
from megatron.training import arguments, get_args, training

from megatron_remit import cpu, patches
from megatron_remit.data import datasets
from megatron_remit.launch.plan_checks import frozen_arguments, set_shape
from megatron_remit.programs import train
from megatron_remit.reference import model as reference_model
from megatron_remit.reference.checkpoint import BASE_FLAG
from megatron_remit.scoring import dataset, session
from megatron_remit.scoring.ahead import ScoreAhead
from megatron_remit.scoring.arguments import stored_columns
from megatron_remit.simulate import fake
from megatron_remit.simulate.ledger import Ledger

_STEPS = 2
"""The optimizer makes its state in the first step; the second is the one that is counted."""


class _Rows(torch.utils.data.Dataset):
    """Rows of zeros, with the columns of score stores: what a token is changes neither shapes nor kernels."""

    split = index_split = Split.train

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return 10**7

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids_S = torch.zeros(self._length, dtype=torch.int64)
        row = {"tokens": ids_S, "labels": ids_S, "loss_mask": torch.ones(self._length), "position_ids": ids_S}
        if get_args().create_attention_mask_in_dataloader:
            row["attention_mask"] = torch.zeros(1, self._length, self._length, dtype=torch.bool)
        for column in stored_columns(get_args()):
            row[column] = torch.zeros(self._length)
            row["score_key"] = torch.zeros(2, dtype=torch.int64)
        return row


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
    mode = fake.Fake(ledger)
    result: dict[str, Any] = {}
    _install_steps(ledger, result)
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

    def reference_arguments(args: argparse.Namespace, flag: str = "") -> argparse.Namespace:
        own = frozen_arguments(args, args.reference_base_load / "hf" if flag == BASE_FLAG else Path(reference))
        args.remit_common_vocab_size = own.remit_common_vocab_size = min(args.remit_vocab_size, own.remit_vocab_size)
        return own

    def build_datasets(_numbers: object, here: Any) -> list[_Rows | None]:
        return [_Rows(task["seq_length"]) if here() else None, None, None]

    arguments.validate_args = validate_args
    train.reference_arguments = reference_arguments
    train.check_run = lambda args: 0  # it opens the reference's checkpoint
    train.record_start = lambda args, step: None
    reference_model._load = lambda *_: None
    dataset.open_store = session.open_store = session.open_base_store = lambda *_, **__: None  # type: ignore[assignment]
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


def _install_steps(ledger: Ledger, result: dict[str, Any]) -> None:
    train_step = training.train_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        optimizer = kwargs["optimizer"] if "optimizer" in kwargs else args[3]
        step = optimizer.step
        optimizer.step = _named(step, ledger, "optimizer")
        ledger.start()
        before = ledger.size
        with ledger.named("rest of the step"):
            out = train_step(*args, **kwargs)
        optimizer.step = step
        result.update(_figures(ledger), live_before=before)
        return out

    training.train_step = counted


def _figures(ledger: Ledger) -> dict[str, Any]:
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
        "operators": [[*key, size] for key, size in ledger.operators.most_common()],
        "host_waits": dict(ledger.waits),
        "side_streams": dict(ledger.side_streams),
    }


def serve(connection: Connection) -> None:
    """Run tasks until the other side hangs up, and answer each with the status of its process."""
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        process = os.fork()
        if process == 0:
            _be_rank(task)
        connection.send(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


def _be_rank(task: dict[str, Any]) -> None:
    """In the forked process; never returns. Writes the result, or the error and its line, to the task's file."""
    out, status = Path(task["out"]), 1
    try:
        log = os.open(task["log"], os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(task["environment"])
        sys.path[:] = task["path"]
        out.write_text(json.dumps(simulate(task)))
        status = 0
    except BaseException as error:
        out.write_text(json.dumps({"error": f"{type(error).__name__}: {error}", "line": fake.place_of(error)}))
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # torch's teardown would ask the device for more than it has


def main() -> None:
    """Serve the connection that the command line names."""
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the pages of all modules
    serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
