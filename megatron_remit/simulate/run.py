"""Simulate the ranks of a run that differ, each in a process of its own that is forked from one with all imports."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from megatron_remit.artifacts import write_whole
from megatron_remit.errors import UserError
from megatron_remit.launch.gpus import Gpu
from megatron_remit.launch.plan_checks import place
from megatron_remit.simulate import shim
from megatron_remit.simulate.table import describe

FLOOR_SECONDS = 4e-6
"""A kernel takes no less: about what a launch from the host takes."""

# Flags that name files or the length of the run, which the simulation replaces. Where weights are drawn changes no
# step, and a fake parameter cannot go from the CPU to the GPU by its data, as Megatron then moves it.
_LEFT_OUT = set(
    "--use-checkpoint-args --exit-on-missing-checkpoint --finetune --exit-signal-handler --load --save --save-interval "
    "--tensorboard-dir --tensorboard-log-interval --data-path --tokenizer-type --tokenizer-model --train-iters --split "
    "--train-samples --eval-iters --eval-interval --reference-load --lr-warmup-iters --log-interval --num-workers "
    "--save-retain-interval --save-keep-last --heartbeat --data-cache-path --mock-data --vocab-size "
    "--score-store-write --use-cpu-initialization".split()
)


class Simulator:
    """A process that has imported the training program, and forks a copy of itself for each rank to simulate.

    The imports take longer than the steps of a small model; whoever simulates several runs passes one to all.
    """

    def __init__(self) -> None:
        environment = {
            **os.environ,
            **shim.environment(),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29517",  # not opened: torch's fake group has no store
            "TORCH_COMPILE_DISABLE": "1",
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        }
        self._connection, theirs = Pipe()
        command = [sys.executable, "-m", "megatron_remit.programs.simulated_step", str(theirs.fileno())]
        with tempfile.TemporaryFile() as log:  # what a rank prints goes to its task's own
            self._process = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno()], stdout=log, stderr=subprocess.STDOUT
            )
        theirs.close()

    def __enter__(self) -> "Simulator":
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()  # at which the process ends
        self._process.wait()

    def rank(self, task: dict[str, Any], rank: int, gpus: int) -> dict[str, Any]:
        """The figures of one rank's step. Raises UserError: the step fails; the message names the line."""
        with tempfile.TemporaryDirectory() as folder:
            out, log = Path(folder) / "out.json", Path(folder) / "log"
            layout = {"RANK": rank, "WORLD_SIZE": gpus, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 8}
            environment = {name: str(value) for name, value in layout.items()}
            try:
                self._connection.send(task | {"out": str(out), "log": str(log), "environment": environment})
                status = self._connection.recv()
            except (EOFError, OSError):
                raise UserError(f"the simulation ended with status {self._process.wait()} before rank {rank}") from None
            result: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
            if "error" in result:
                raise UserError(f"the simulated step of rank {rank} fails at {result['line']}: {result['error']}")
            if status or not result:
                raise UserError(f"the simulation of rank {rank} ended with status {status}: {log.read_text()[-500:]}")
        return result


def simulate_and_print(
    base_hf: Path, reference_hf: Path | None, gpus: int, training: list[str], kind: Gpu, out: Path | None
) -> None:
    """Print the table of :func:`simulate_run`, and write its figures to ``out`` as JSON. Raises as that."""
    args = place(base_hf, reference_hf, gpus, training).policy.args
    ranks = simulate_run(base_hf, reference_hf, gpus, training, kind)
    if out is not None:
        write_whole(out, json.dumps(ranks, indent=1) + "\n")
    print(describe(ranks, args.global_batch_size * args.seq_length, gpus, kind))


def simulate_run(
    base_hf: Path,
    reference_hf: Path | None,
    gpus: int,
    training: list[str],
    kind: Gpu,
    modules: tuple[str, ...] = (),
    simulator: Simulator | None = None,
) -> dict[str, dict[str, Any]]:
    """Figures of a step by rank: that of the first, a middle and the last pipeline stage.

    Args:
        base_hf, reference_hf: Hugging Face folders of policy and reference, of which only the configs are read.
        gpus: GPUs of the run.
        training: the flags of the training program.
        kind: the GPU, whose bandwidth and peak give the times.
        modules: Python modules that are imported before the step, such as a model's own layers.
        simulator: runs the ranks; without one a process of this call does.

    Raises:
        UserError: flags that the plan would refuse, no C compiler, or a step that fails; the message names the line.
    """
    args = place(base_hf, reference_hf, gpus, training).policy.args
    if args.dataloader_inter_document_masking:
        raise UserError(
            "--dataloader-inter-document-masking: the shapes of a step follow from where documents end, and a "
            "simulation reads no corpus; leave it out, and attention is counted over whole rows"
        )
    stages = args.pipeline_model_parallel_size
    ranks = sorted({stage * (gpus // stages) for stage in (0, stages // 2, stages - 1)})
    flags = [*_kept(training), *"--mock-data --tokenizer-type NullTokenizer --eval-iters 0 --train-iters 2".split()]
    flags += ["--vocab-size", str(args.remit_vocab_size - 1), "--fake-process-group", "--num-workers", "0"]
    flags += ["--log-interval", "1", "--lr-warmup-iters", "0", "--split", "100,0,0"]
    if reference_hf is not None:
        flags += ["--reference-load", str(reference_hf)]
    task = {
        "base_hf": str(base_hf),
        "reference_hf": None if reference_hf is None else str(reference_hf),
        "flags": flags,
        "seq_length": args.seq_length,
        "bandwidth": kind.bandwidth,
        "peak": kind.peak,
        "floor": FLOOR_SECONDS,
        "modules": list(modules),
        "path": sys.path,
    }
    with contextlib.ExitStack() as stack:
        simulator = simulator or stack.enter_context(Simulator())
        return {f"rank {rank}": simulator.rank(task, rank, gpus) for rank in ranks}


def _kept(training: list[str]) -> list[str]:
    """The flags without those that are left out, and their values."""
    kept, keep = [], True
    for word in training:
        if word.startswith("--"):
            keep = word.split("=")[0] not in _LEFT_OUT
        if keep:
            kept.append(word)
    return kept
