"""The environment variables of the job scripts, a row each: default, meaning and check.

docs/cluster.md repeats the rows. Runs on the host with the standard library alone (see ``megatron_remit.launch.job``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_remit.launch.slurm import nodes_asked_for
from megatron_remit.launch.values import (
    TRAIN,
    WITHOUT_REFERENCE,
    Host,
    Values,
    count,
    duration,
    folder,
    number,
    optional_path,
    path,
    program,
    reference,
    runtime,
    scores,
    sets,
    setup,
    staged,
    switch,
    task,
    text,
    tokens_per_step,
)


@dataclass(frozen=True)
class Variable:
    """A row of the table. The default and the check may depend on the rows above it."""

    name: str
    default: str | Callable[[Values, Host], str | None] | None  # None: must be given
    meaning: str
    check: Callable[[str, str, Values], Any] = text
    shown: str = ""  # in words, a default that is not a constant


_SCRIPT = "the script's"
# A fresh Adam's second moment is an average over few steps at first: 2 / (1 - beta2) steps of linear warm-up (Ma and
# Yarats 2021, arXiv:1910.04209), for the scripts' beta2 of 0.95.
_ADAM_WARMUP = 40
VARIABLES = (
    Variable("BASE_HF", None, "the Hugging Face folder of the model to train", folder),
    Variable(
        "CORPUS",
        None,
        "the prefix of a corpus written by tools/preprocess_corpus.py, or Megatron's list 'weight prefix ...'",
    ),
    Variable(
        "RUN_DIR",
        None,
        "the folder for this run's checkpoints, logs and exported model, on a file system that all nodes share",
        path,
    ),
    Variable("OBJECTIVE", "remit", "the training program's `--objective`; `ntp` is the baseline"),
    Variable(
        "RL_HF",
        lambda values, _host: "" if values["objective"] in WITHOUT_REFERENCE else None,
        "the Hugging Face folder of the RL model of the same tokenizer, the reference",
        reference,
        "needed, but not for `ntp` and `eslm`",
    ),
    Variable(
        "IMPORT_DIR",
        lambda values, _host: str(values["run_dir"].parent / "imported"),
        "the folder of the imported models, shared by all jobs",
        path,
        "`imported` next to `RUN_DIR`",
    ),
    Variable(
        "TASK",
        TRAIN,
        "`train`, or `score`: write the reference's scores of the rows that the run reads into `SCORES`, and end",
        task,
    ),
    Variable("SCORES", "", "a score store, which a run reads in place of building the reference", scores),
    Variable("SEQ_LENGTH", "", "tokens per sequence", number, _SCRIPT),
    Variable("GLOBAL_BATCH_SIZE", "", "sequences per step", number, _SCRIPT),
    Variable("LR", "", "the highest learning rate", text, _SCRIPT),
    Variable("MIN_LR", "1e-7", "the last learning rate"),
    Variable("EPSILON", "0.2", "`--remit-epsilon`, the clip of ReMiT's weights"),
    Variable("TOKENS", "50000000000", "length of the run in tokens", number),
    Variable(
        "TRAIN_ITERS",
        lambda values, _host: str(-(-values["tokens"] // tokens_per_step(values))),
        "length of the run in steps",
        number,
        "from `TOKENS`",
    ),
    Variable(
        "WARMUP_ITERS",
        lambda values, _host: str(min(_ADAM_WARMUP, values["train_iters"] // 20)),
        "steps of warm-up",
        text,
        f"{_ADAM_WARMUP}, at most 5 % of the run",
    ),
    Variable("SEED", "1234", "Megatron's seed"),
    Variable("SPLIT", "99,1,0", "shares of the corpus for training, validation and test"),
    Variable(
        "VALID",
        "",
        "validation sets, `name=prefix name=prefix`: each is read whole and has its own loss. All of `CORPUS` is then "
        "for training, and `SPLIT` and `EVAL_ITERS` are not used",
        sets,
    ),
    Variable("SAVE_TOKENS", "1000000000", "tokens between checkpoints", number),
    Variable(
        "SAVE_INTERVAL",
        lambda values, _host: str(max(1, values["save_tokens"] // tokens_per_step(values))),
        "steps between checkpoints",
        number,
        "from `SAVE_TOKENS`",
    ),
    Variable("KEEP_LAST", "3", "how many of the newest checkpoints stay", number),
    Variable(
        "KEEP_TOKENS",
        "10000000000",
        "of the older ones one stays every so many tokens; 0: all checkpoints stay",
        count,
    ),
    Variable("ASYNC_SAVE", "0", "1: training goes on while a checkpoint is written (`--async-save`)", switch),
    Variable("EVAL_INTERVAL", "500", "steps between validations"),
    Variable("EVAL_ITERS", "10", "steps per validation"),
    Variable("PRECISION", "bf16", "`bf16`, `fp16` or `fp32`"),
    Variable("EXTRA_ARGS", "", "more flags of the training program, with blanks between; the last of a kind wins"),
    Variable("MICRO_BATCH_SIZE", "1", "sequences per microbatch", number, _SCRIPT),
    Variable(
        "REFERENCE_MICRO_BATCH_SIZE",
        lambda values, _host: str(values["micro_batch_size"]),
        "sequences per microbatch of the reference",
        number,
        _SCRIPT,
    ),
    Variable("TP", "1", "tensor parallelism; above 1 it brings sequence parallelism", number),
    Variable("PP", "1", "pipeline parallelism", number),
    Variable("EP", "1", "expert parallelism of policy and reference; for models with experts", number),
    Variable(
        "NODES",
        lambda _values, host: nodes_asked_for(host.script),
        "nodes of a dry run; a job has those that Slurm gives it",
        number,
        "the script's header",
    ),
    Variable(
        "GPUS_PER_NODE",
        lambda _values, host: host.allocation.gpus_per_node or "8",
        "processes per node",
        number,
        "Slurm's, else 8",
    ),
    Variable(
        "GPU", "H100-80GB", "kind of GPU, for the plan's time and memory (`megatron-remit plan --help` lists them)"
    ),
    Variable("MAX_EPOCHS", "20", "the plan refuses a run that reads a corpus more often"),
    Variable("MAX_RESTARTS", "100", "requeues before the job gives up", count),
    Variable("RETRIES", "3", "failures and hangs without a new checkpoint in between before the job gives up", count),
    Variable("RETRY_SECONDS", "60", "pause before the first new try; each further one is twice as long", duration),
    Variable("NODE_FAILURES", "2", "failures after which a node is not used again by the job; 0: it always is", count),
    Variable(
        "HANG_MINUTES",
        "30",
        "minutes without a step after which the ranks are ended and the job requeued; 0: never",
        duration,
    ),
    Variable(
        "START_MINUTES", "60", "the same before the first step of a start, in a validation and in a save", duration
    ),
    Variable(
        "MASTER_ADDR",
        lambda _values, host: host.allocation.first_node() or "FIRST_NODE",
        "address where the ranks meet",
        text,
        "the first node",
    ),
    Variable(
        "MASTER_PORT",
        lambda _values, host: host.allocation.port(),
        "port where the ranks meet",
        text,
        "20000 + job id mod 10000",
    ),
    Variable(
        "SETUP",
        "",
        "shell code, or a file of it, run on each node before each command, such as `module load cuda`",
        setup,
    ),
    Variable(
        "STAGE",
        "",
        "a folder of each node's own disk, to which each node copies what `STAGE_WHAT` says before it trains",
        optional_path,
    ),
    Variable(
        "STAGE_WHAT",
        "index reference store",
        "of `index` (`.idx` of the corpora), `corpus` (all of them), `reference`, `store` (`--score-store`)",
        staged,
    ),
    Variable("CONTAINER_IMAGE", "", "image to run in"),
    Variable(
        "CONTAINER_RUNTIME",
        lambda values, _host: "apptainer" if values["container_image"].endswith(".sif") else "pyxis",
        "`pyxis` (with enroot), `apptainer` or `singularity`",
        runtime,
        "`apptainer` for an image `*.sif`, else `pyxis`",
    ),
    Variable("CONTAINER_MOUNTS", "", "more folders to mount, `/a:/a,/b:/b`"),
    Variable("CONTAINER_PROJECT", "/opt/megatron-remit", "the project's folder in the image"),
    Variable(
        "VENV",
        lambda _values, host: f"{host.project}/.venv",
        "virtual environment on a shared file system",
        text,
        "the project's `.venv`",
    ),
    Variable(
        "PYTHON",
        lambda values, _host: "python" if values["container_image"] else f"{values['venv']}/bin/python",
        "Python on the nodes",
        program,
        "`VENV/bin/python`; `python` in an image",
    ),
    Variable("OMP_NUM_THREADS", "1", "threads per rank; the ranks of a node share its cores"),
    Variable(
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "1",
        "with 1 kernels start in the order in which they were queued, which Megatron asks for under `TP`",
    ),
)
