"""The environment variables of the job scripts, a row each: default, meaning and check.

docs/cluster.md repeats the rows. Runs on the host with the standard library alone (see ``megatron_remit.launch.job``).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_remit.errors import UserError
from megatron_remit.launch.slurm import Allocation, nodes_asked_for


@dataclass(frozen=True)
class Host:
    """Where the job script runs: the project's folder, the script, and what the scheduler gave the job."""

    project: Path
    script: Path
    allocation: Allocation


# The objectives of the training program that read no reference; this file cannot ask them (it runs without torch).
WITHOUT_REFERENCE = ("ntp", "eslm")

# The settings that have been read so far, by the names of their fields.
Values = dict[str, Any]


def is_weight(word: str) -> bool:
    """Whether a word of CORPUS is the weight of the prefix after it."""
    return re.fullmatch(r"[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?", word) is not None


def _text(_name: str, text: str, _values: Values) -> str:
    return text


def _number(name: str, text: str, _values: Values) -> int:
    if not re.fullmatch("[1-9][0-9]*", text):
        raise UserError(f"{name} is '{text}': expected a whole number above 0")
    return int(text)


def _count(name: str, text: str, _values: Values) -> int:
    if not re.fullmatch("[0-9]+", text):
        raise UserError(f"{name} is '{text}': expected a whole number")
    return int(text)


def _switch(name: str, text: str, _values: Values) -> bool:
    if text not in ("0", "1"):
        raise UserError(f"{name} is '{text}': expected 0 or 1")
    return text == "1"


def _tokens_per_step(values: Values) -> int:
    return int(values["global_batch_size"] * values["seq_length"])


def _setup(_name: str, text: str, _values: Values) -> str:
    return f". {shlex.quote(os.path.realpath(text))}" if os.path.isfile(text) else text


def _runtime(name: str, text: str, _values: Values) -> str:
    if text not in ("pyxis", "apptainer", "singularity"):
        raise UserError(f"{name} is '{text}': expected pyxis, apptainer or singularity")
    return text


def _duration(name: str, text: str, _values: Values) -> float:
    if not re.fullmatch(r"[0-9]*\.?[0-9]+", text):
        raise UserError(f"{name} is '{text}': expected a number, 0 or above")
    return float(text)


def _path(_name: str, text: str, _values: Values) -> Path:
    # Whole paths everywhere: the working folder inside a container is a different one.
    return Path(os.path.realpath(text))


def _folder(name: str, text: str, values: Values) -> Path:
    if not os.path.isdir(text):
        raise UserError(f"{name}={text}: no such folder")
    return _path(name, text, values)


def _reference(name: str, text: str, values: Values) -> Path | None:
    if values["objective"] not in WITHOUT_REFERENCE:
        return _folder(name, text, values)
    return _path(name, text, values) if text else None


def _program(_name: str, text: str, values: Values) -> str:
    # The Python inside an image cannot be looked up from the host.
    if not values["container_image"] and shutil.which(text) is None:
        raise UserError(
            f"{text} is not there: set VENV to a virtual environment on a shared file system, or CONTAINER_IMAGE"
        )
    return text


@dataclass(frozen=True)
class Variable:
    """A row of the table. The default and the check may depend on the rows above it."""

    name: str
    default: str | Callable[[Values, Host], str | None] | None  # None: must be given
    meaning: str
    check: Callable[[str, str, Values], Any] = _text
    shown: str = ""  # in words, a default that is not a constant


_SCRIPT = "the script's"
# A fresh Adam's second moment is an average over few steps at first: 2 / (1 - beta2) steps of linear warm-up (Ma and
# Yarats 2021, arXiv:1910.04209), for the scripts' beta2 of 0.95.
_ADAM_WARMUP = 40
VARIABLES = (
    Variable("BASE_HF", None, "the Hugging Face folder of the model to train", _folder),
    Variable(
        "CORPUS",
        None,
        "the prefix of a corpus written by tools/preprocess_corpus.py, or Megatron's list 'weight prefix ...'",
    ),
    Variable(
        "RUN_DIR",
        None,
        "the folder for this run's checkpoints, logs and exported model, on a file system that all nodes share",
        _path,
    ),
    Variable("OBJECTIVE", "remit", "the training program's `--objective`; `ntp` is the baseline"),
    Variable(
        "RL_HF",
        lambda values, _host: "" if values["objective"] in WITHOUT_REFERENCE else None,
        "the Hugging Face folder of the RL model of the same tokenizer, the reference",
        _reference,
        "needed, but not for `ntp` and `eslm`",
    ),
    Variable(
        "IMPORT_DIR",
        lambda values, _host: str(values["run_dir"].parent / "imported"),
        "the folder of the imported models, shared by all jobs",
        _path,
        "`imported` next to `RUN_DIR`",
    ),
    Variable("SEQ_LENGTH", "", "tokens per sequence", _number, _SCRIPT),
    Variable("GLOBAL_BATCH_SIZE", "", "sequences per step", _number, _SCRIPT),
    Variable("LR", "", "the highest learning rate", _text, _SCRIPT),
    Variable("MIN_LR", "1e-7", "the last learning rate"),
    Variable("EPSILON", "0.2", "`--remit-epsilon`, the clip of ReMiT's weights"),
    Variable("TOKENS", "50000000000", "length of the run in tokens", _number),
    Variable(
        "TRAIN_ITERS",
        lambda values, _host: str(-(-values["tokens"] // _tokens_per_step(values))),
        "length of the run in steps",
        _number,
        "from `TOKENS`",
    ),
    Variable(
        "WARMUP_ITERS",
        lambda values, _host: str(min(_ADAM_WARMUP, values["train_iters"] // 20)),
        "steps of warm-up",
        _text,
        f"{_ADAM_WARMUP}, at most 5 % of the run",
    ),
    Variable("SEED", "1234", "Megatron's seed"),
    Variable("SPLIT", "99,1,0", "shares of the corpus for training, validation and test"),
    Variable("SAVE_TOKENS", "1000000000", "tokens between checkpoints", _number),
    Variable(
        "SAVE_INTERVAL",
        lambda values, _host: str(max(1, values["save_tokens"] // _tokens_per_step(values))),
        "steps between checkpoints",
        _number,
        "from `SAVE_TOKENS`",
    ),
    Variable("KEEP_LAST", "3", "how many of the newest checkpoints stay", _number),
    Variable(
        "KEEP_TOKENS",
        "10000000000",
        "of the older ones one stays every so many tokens; 0: all checkpoints stay",
        _count,
    ),
    Variable("ASYNC_SAVE", "0", "1: training goes on while a checkpoint is written (`--async-save`)", _switch),
    Variable("EVAL_INTERVAL", "500", "steps between validations"),
    Variable("EVAL_ITERS", "10", "steps per validation"),
    Variable("PRECISION", "bf16", "`bf16`, `fp16` or `fp32`"),
    Variable("EXTRA_ARGS", "", "more flags of the training program, with blanks between; the last of a kind wins"),
    Variable("MICRO_BATCH_SIZE", "1", "sequences per microbatch", _number, _SCRIPT),
    Variable(
        "REFERENCE_MICRO_BATCH_SIZE",
        lambda values, _host: str(values["micro_batch_size"]),
        "sequences per microbatch of the reference",
        _number,
        _SCRIPT,
    ),
    Variable("TP", "1", "tensor parallelism; above 1 it brings sequence parallelism", _number),
    Variable("PP", "1", "pipeline parallelism", _number),
    Variable("EP", "1", "expert parallelism of policy and reference; for models with experts", _number),
    Variable(
        "NODES",
        lambda _values, host: nodes_asked_for(host.script),
        "nodes of a dry run; a job has those that Slurm gives it",
        _number,
        "the script's header",
    ),
    Variable(
        "GPUS_PER_NODE",
        lambda _values, host: host.allocation.gpus_per_node or "8",
        "processes per node",
        _number,
        "Slurm's, else 8",
    ),
    Variable(
        "GPU", "H100-80GB", "kind of GPU, for the plan's time and memory (`megatron-remit plan --help` lists them)"
    ),
    Variable("MAX_EPOCHS", "20", "the plan refuses a run that reads a corpus more often"),
    Variable("MAX_RESTARTS", "100", "requeues before the job gives up", _count),
    Variable("RETRIES", "3", "failures and hangs without a new checkpoint in between before the job gives up", _count),
    Variable("RETRY_SECONDS", "60", "pause before the first new try; each further one is twice as long", _duration),
    Variable("NODE_FAILURES", "2", "failures after which a node is not used again by the job; 0: it always is", _count),
    Variable(
        "HANG_MINUTES",
        "30",
        "minutes without a step after which the ranks are ended and the job requeued; 0: never",
        _duration,
    ),
    Variable(
        "START_MINUTES", "60", "the same before the first step of a start, in a validation and in a save", _duration
    ),
    Variable(
        "MASTER_ADDR",
        lambda _values, host: host.allocation.first_node() or "FIRST_NODE",
        "address where the ranks meet",
        _text,
        "the first node",
    ),
    Variable(
        "MASTER_PORT",
        lambda _values, host: host.allocation.port(),
        "port where the ranks meet",
        _text,
        "20000 + job id mod 10000",
    ),
    Variable(
        "SETUP",
        "",
        "shell code, or a file of it, run on each node before each command, such as `module load cuda`",
        _setup,
    ),
    Variable("CONTAINER_IMAGE", "", "image to run in"),
    Variable(
        "CONTAINER_RUNTIME",
        lambda values, _host: "apptainer" if values["container_image"].endswith(".sif") else "pyxis",
        "`pyxis` (with enroot), `apptainer` or `singularity`",
        _runtime,
        "`apptainer` for an image `*.sif`, else `pyxis`",
    ),
    Variable("CONTAINER_MOUNTS", "", "more folders to mount, `/a:/a,/b:/b`"),
    Variable("CONTAINER_PROJECT", "/opt/megatron-remit", "the project's folder in the image"),
    Variable(
        "VENV",
        lambda _values, host: f"{host.project}/.venv",
        "virtual environment on a shared file system",
        _text,
        "the project's `.venv`",
    ),
    Variable(
        "PYTHON",
        lambda values, _host: "python" if values["container_image"] else f"{values['venv']}/bin/python",
        "Python on the nodes",
        _program,
        "`VENV/bin/python`; `python` in an image",
    ),
    Variable("OMP_NUM_THREADS", "1", "threads per rank; the ranks of a node share its cores"),
    Variable(
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "1",
        "with 1 kernels start in the order in which they were queued, which Megatron asks for under `TP`",
    ),
)
