"""The values of the job scripts' variables: from the text in the environment to what the job works with.

Each check takes the variable's name, its text, and the settings that were read before it; it returns the value or
raises UserError. Runs on the host with the standard library alone (see ``megatron_remit.launch.job``).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_remit.errors import DOWNLOAD, UserError
from megatron_remit.launch.slurm import Allocation


@dataclass(frozen=True)
class Host:
    """Where the job script runs: the project's folder, the script, and what the scheduler gave the job."""

    project: Path
    script: Path
    allocation: Allocation


# The objectives of the training program that read no reference; this file cannot ask them (it runs without torch).
WITHOUT_REFERENCE = ("ntp", "eslm")

TRAIN, SCORE = "train", "score"
"""What a job may be for, the words of ``TASK``."""
STAGED = ("index", "corpus", "reference", "store")
"""The words of ``STAGE_WHAT``; ``staging.py`` has the flags that each stands for."""

# The settings that have been read so far, by the names of their fields.
Values = dict[str, Any]


def is_weight(word: str) -> bool:
    """Whether a word of CORPUS is the weight of the prefix after it."""
    return re.fullmatch(r"[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?", word) is not None


def text(_name: str, text: str, _values: Values) -> str:
    return text


def number(name: str, text: str, _values: Values) -> int:
    if not re.fullmatch("[1-9][0-9]*", text):
        raise UserError(f"{name} is '{text}': expected a whole number above 0")
    return int(text)


def count(name: str, text: str, _values: Values) -> int:
    if not re.fullmatch("[0-9]+", text):
        raise UserError(f"{name} is '{text}': expected a whole number")
    return int(text)


def switch(name: str, text: str, _values: Values) -> bool:
    if text not in ("0", "1"):
        raise UserError(f"{name} is '{text}': expected 0 or 1")
    return text == "1"


def tokens_per_step(values: Values) -> int:
    return int(values["global_batch_size"] * values["seq_length"])


def setup(_name: str, text: str, _values: Values) -> str:
    return f". {shlex.quote(os.path.realpath(text))}" if os.path.isfile(text) else text


def runtime(name: str, text: str, _values: Values) -> str:
    if text not in ("pyxis", "apptainer", "singularity"):
        raise UserError(f"{name} is '{text}': expected pyxis, apptainer or singularity")
    return text


def task(name: str, text: str, _values: Values) -> str:
    if text not in (TRAIN, SCORE):
        raise UserError(f"{name} is '{text}': expected {TRAIN} or {SCORE}")
    return text


def scores(name: str, text: str, values: Values) -> Path | None:
    if values["task"] == SCORE and not text:
        raise UserError(f"{name} is not set: give the folder of the score store that TASK={SCORE} writes")
    if text and values["objective"] in WITHOUT_REFERENCE:
        raise UserError(f"{name}={text}: OBJECTIVE={values['objective']} reads no scores; unset {name}")
    return optional_path(name, text, values)


def sets(name: str, text: str, _values: Values) -> tuple[tuple[str, str], ...]:
    """Name and whole path of each validation set."""
    found: dict[str, str] = {}
    for word in text.split():
        label, equals, prefix = word.partition("=")
        if not (label and equals and prefix):
            raise UserError(f"{name} has {word}: expected NAME=PREFIX of each validation set, with blanks between")
        if label in found:
            raise UserError(f"{name} has the name {label} twice: each validation set needs its own")
        found[label] = os.path.realpath(prefix)
    return tuple(found.items())


def staged(name: str, text: str, _values: Values) -> tuple[str, ...]:
    unknown = [word for word in text.split() if word not in STAGED]
    if unknown:
        raise UserError(f"{name} has {unknown[0]}: expected words of {', '.join(STAGED)}, with blanks between")
    return tuple(text.split())


def duration(name: str, text: str, _values: Values) -> float:
    if not re.fullmatch(r"[0-9]*\.?[0-9]+", text):
        raise UserError(f"{name} is '{text}': expected a number, 0 or above")
    return float(text)


def path(_name: str, text: str, _values: Values) -> Path:
    # Whole paths everywhere: the working folder inside a container is a different one.
    return Path(os.path.realpath(text))


def optional_path(name: str, text: str, values: Values) -> Path | None:
    return path(name, text, values) if text else None


def folder(name: str, text: str, values: Values) -> Path:
    if not os.path.isdir(text):
        raise UserError(f"{name}={text}: no such folder; {DOWNLOAD}")
    return path(name, text, values)


def reference(name: str, text: str, values: Values) -> Path | None:
    if values["objective"] not in WITHOUT_REFERENCE:
        return folder(name, text, values)
    return optional_path(name, text, values)


def program(_name: str, text: str, values: Values) -> str:
    # The Python inside an image cannot be looked up from the host.
    if not values["container_image"] and shutil.which(text) is None:
        raise UserError(
            f"{text} is not there: set VENV to a virtual environment on a shared file system, or CONTAINER_IMAGE"
        )
    return text
