"""The command lines of a job, as lists of words: plan, import, training, export.

They run on the nodes with the settings' Python; what runs them there is ``slurm.step``. Runs on the host with the
standard library alone (see ``megatron_remit.launch.job``).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from megatron_remit.errors import UserError
from megatron_remit.launch.settings import Settings
from megatron_remit.launch.staging import Copy, copies, with_copies
from megatron_remit.launch.values import SCORE, WITHOUT_REFERENCE


@dataclass(frozen=True)
class Progress:
    """What a failure does not take away."""

    saved: int
    """The step of the last checkpoint, or the number of shards of scores."""
    text: str

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(cls, settings: Settings) -> Progress:
        """That of a run as the file system has it now."""
        if settings.task == SCORE:
            shards = len(list(settings.scores.glob("scores-*.safetensors"))) if settings.scores else 0
            return cls(shards, f"{shards} shards of scores in {settings.scores}")
        saved = saved_step(settings.run_dir)
        return cls(saved, f"step {saved} of {settings.train_iters}")


@dataclass(frozen=True)
class Commands:
    """The command lines of a run that goes on after step ``saved`` (0: from the imported base)."""

    settings: Settings
    base: Path  # the folder of the imported base model
    reference: Path | None  # that of the imported reference; None for an objective without one
    saved: int
    start: str = ""  # which start of which job this is, the name of a folder of logs; empty outside a job

    @classmethod
    def of(cls, settings: Settings, start: str = "") -> Commands:
        """Those of a run as the file system has it now."""
        base = import_folder(settings.base_hf, settings.import_dir)
        reference = None
        if settings.objective not in WITHOUT_REFERENCE and settings.rl_hf is not None:
            reference = import_folder(settings.rl_hf, settings.import_dir)
        return cls(settings, base, reference, saved_step(settings.run_dir), start)

    def training_flags(self) -> list[str]:
        """The flags of the training program."""
        settings, run_dir = self.settings, self.settings.run_dir
        # fmt: off
        flags = [
            "--use-checkpoint-args", "--exit-on-missing-checkpoint",
            "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", f"{self.base}/hf",
            "--objective", settings.objective,
            *self._data_flags(), "--seq-length", f"{settings.seq_length}", "--seed", settings.seed,
            "--micro-batch-size", f"{settings.micro_batch_size}",
            "--global-batch-size", f"{settings.global_batch_size}",
            "--train-iters", f"{settings.train_iters}",
            "--lr", settings.lr, "--min-lr", settings.min_lr,
            "--lr-decay-style", "cosine", "--lr-warmup-iters", settings.warmup_iters,
            "--adam-beta1", "0.9", "--adam-beta2", "0.95", "--weight-decay", "0.1", "--clip-grad", "1.0",
            "--tensor-model-parallel-size", f"{settings.tp}", "--pipeline-model-parallel-size", f"{settings.pp}",
            "--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather",
            "--save", f"{run_dir}/checkpoints", "--save-interval", f"{settings.save_interval}",
            "--exit-signal-handler", "--heartbeat", f"{settings.heartbeat}",
            "--distributed-timeout-minutes", f"{settings.timeout_minutes}",
            "--flight-recorder-dump-path", f"{settings.logs(self.start)}/nccl-rank-",
            "--eval-interval", settings.eval_interval,
            "--tensorboard-dir", f"{run_dir}/tensorboard", "--tensorboard-log-interval", "1", "--log-interval", "1",
            "--log-timers-to-tensorboard", "--log-throughput", "--log-memory-to-tensorboard",
        ]
        # fmt: on
        if not settings.valid:  # else each set is read to its end
            flags += ["--eval-iters", settings.eval_iters]
        if settings.keep_interval:
            keep = ["--save-retain-interval", f"{settings.keep_interval}", "--save-keep-last", f"{settings.keep_last}"]
            flags += keep
        if settings.async_save:
            flags += ["--async-save", "--use-persistent-ckpt-worker"]
        if settings.tp > 1:
            flags.append("--sequence-parallel")
        if settings.ep > 1:
            flags += ["--expert-model-parallel-size", f"{settings.ep}"]
        if settings.precision != "fp32":
            flags.append(f"--{settings.precision}")
        if settings.scores and self.reference is not None:
            flags += ["--score-store", f"{settings.scores}"]
        if self.reference is not None:
            flags += ["--reference-load", f"{self.reference}", "--remit-epsilon", settings.epsilon]
            flags += ["--reference-micro-batch-size", f"{settings.reference_micro_batch_size}"]
        flags += settings.extra_args.split()
        if self.saved:
            return [*flags, "--load", f"{run_dir}/checkpoints"]
        return [*flags, "--load", f"{self.base}", "--finetune"]

    def _data_flags(self) -> list[str]:
        settings = self.settings
        if not settings.valid:
            return ["--data-path", *settings.data_path, "--split", settings.split]
        names, prefixes = [name for name, _ in settings.valid], [prefix for _, prefix in settings.valid]
        flags = ["--train-data-path", *settings.data_path, "--valid-data-path", *prefixes]
        return [*flags, "--validation-set-names", *names, "--full-validation", "--multiple-validation-sets"]

    def work(self) -> list[str]:
        """Training, or scoring, on all nodes: one of these per node, which starts a process per GPU."""
        settings = self.settings
        meeting = ["--master-addr", settings.master_addr, "--master-port", settings.master_port]
        size = ["--nnodes", f"{settings.nodes}", "--nproc-per-node", f"{settings.gpus_per_node}"]
        launcher = [settings.python, "-m", "megatron_remit.launch.node", f"{settings.logs(self.start)}"]
        torchrun = [*launcher, *size, *meeting]
        flags = with_copies(self.training_flags(), self._copies(), settings.run_dir / "data-cache")
        program = [f"{settings.tools}/score_corpus.py"] if settings.task == SCORE else ["-m", "megatron_remit.pretrain"]
        return [*torchrun, *program, *flags]

    def stage(self) -> list[str]:
        """The copies to each node's own disk, one of these per node; empty if there are none."""
        made = self._copies()
        words = [word for copy in made for word in (copy.kind, copy.source, copy.target)]
        settings = self.settings
        return [settings.python, "-m", "megatron_remit.launch.stage", f"{settings.stage}", *words] if made else []

    def plan(self, simulate: bool = False) -> list[str]:
        """All checks that can be made before the start, and the run's length, cost and memory; with ``simulate`` also a
        step on fake CUDA tensors."""
        settings = self.settings
        command = [*self._tool("plan_run.py"), "--base-hf", f"{settings.base_hf}"]
        command += ["--gpus", f"{settings.nodes * settings.gpus_per_node}"]
        command += ["--gpus-per-node", f"{settings.gpus_per_node}", "--gpu", settings.gpu]
        command += ["--max-epochs", settings.max_epochs]
        if self.reference is not None:
            command += ["--reference-hf", f"{settings.rl_hf}"]
        if simulate:
            command.append("--simulate")
        return [*command, "--", *self.training_flags()]

    def import_model(self, hf: Path, out: Path) -> list[str]:
        """The import of the Hugging Face model ``hf`` to ``out``."""
        return [*self._tool("import_hf.py"), "--hf", f"{hf}", "--out", f"{out}"]

    def export(self) -> list[str]:
        """The export of the last checkpoint to the run's folder, in place of that of an earlier one."""
        run_dir = self.settings.run_dir
        flags = ["--megatron", f"{run_dir}/checkpoints", "--hf-template", f"{self.base}/hf", "--out", f"{run_dir}/hf"]
        return [*self._tool("export_hf.py"), *flags, "--overwrite"]

    def _copies(self) -> list[Copy]:
        settings = self.settings
        return copies(self.training_flags(), settings.stage, settings.stage_what) if settings.stage else []

    def _tool(self, name: str) -> list[str]:
        return [self.settings.python, f"{self.settings.tools}/{name}"]


def import_folder(hf: Path, import_dir: Path) -> Path:
    """The folder under ``import_dir`` where the import of ``hf`` belongs.

    Its name follows the content (path, and sizes and times of the files): a model that was replaced in place is
    imported anew.
    """
    files = []
    for entry in os.scandir(hf):
        if entry.is_file():
            size, modified = entry.stat().st_size, entry.stat().st_mtime_ns // 10**9
            files.append(os.fsencode(entry.name) + f" {size} {modified}\n".encode())
    content = os.fsencode(hf) + b"\n" + b"".join(sorted(files))
    return import_dir / f"{hf.name}-{hashlib.sha256(content).hexdigest()[:12]}"


def saved_step(run_dir: Path) -> int:
    """The step of the last checkpoint in the run's own folder, 0 if there is none.

    Raises:
        UserError: Megatron's tracker file does not hold a step.
    """
    tracker = run_dir / "checkpoints/latest_checkpointed_iteration.txt"
    if not tracker.is_file():
        return 0
    text = tracker.read_text(encoding="utf-8").strip()
    if not text.isdecimal():
        raise UserError(f"{tracker}: '{text}' is not the number of a step; write that of the last whole checkpoint")
    return int(text)
