"""Bad inputs: each of tests/campaign/inputs/*.toml is one command with something wrong, and what its line must name.

A file has one array ``case`` with a table for each:

    name     what is wrong, in words
    command  a key of COMMANDS
    set      flags that differ from those of a command that works (dashes as underscores); "" leaves one out
    more     further words of the command line
    make     how the files are made bad before: see tests/campaign/damage.py
    names    what the error line must hold: the flag or file
    ranks    processes of a training command (default 1)
"""

import re
import subprocess
import tempfile
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign.damage import spoil
from tests.campaign.world import contents, copy_world, run_flags
from tests.conftest import Material
from tests.ranks import ROOT, Run, run_command, run_job

LIMIT_SECONDS = 60
CACHES = ("corpus", "made")
"""Folders of Megatron's indexes of a corpus' rows, which later runs use."""
FATES = ("clear", "unclear", "traceback", "silent", "hang", "left behind")
_TOOLS = {
    "import": ("import_hf", {"hf": "hf_policy", "out": "new"}),
    "export": ("export_hf", {"megatron": "policy", "hf_template": "hf_policy", "out": "new"}),
    "preprocess": (
        "preprocess_corpus",
        {"input": "text.jsonl", "output_prefix": "new", "tokenizer_model": "hf_policy"},
    ),
    "manifest": ("corpus_manifest", {"prefix": "corpus", "tokenizer_model": "hf_policy"}),
    "plan": ("plan_run", {"base_hf": "hf_policy", "reference_hf": "hf_reference", "gpus": "1"}),
    "compare": ("compare_models", {"out": "new", "model": "a=hf_policy", "text": "text.jsonl", "seq_length": "32"}),
    "evaluate": ("evaluate", {"out": "new", "model": "a=hf_policy", "columns": "GSM8K", "local_data": "data"}),
}
_PLANNED = (
    "--seq-length 24 --micro-batch-size 2 --global-batch-size 8 --train-iters 3 --data-path made --objective remit"
).split()
COMMANDS = (*_TOOLS, "train", "resume", "score", "select", "store")


@dataclass(frozen=True)
class Case:
    """One bad input."""

    name: str
    command: str
    names: list[str]
    set: dict[str, Any] = field(default_factory=dict)
    more: list[str] = field(default_factory=list)
    make: list[list[object]] = field(default_factory=list)
    ranks: int = 1


@dataclass(frozen=True)
class Outcome:
    """What became of a case: one of FATES, and the program's last words."""

    case: Case
    fate: str
    words: str
    seconds: float


def read_cases() -> list[Case]:
    """All cases, by file and place."""
    files = sorted((Path(__file__).parent / "inputs").glob("*.toml"))
    cases = [Case(**case) for file in files for case in tomllib.loads(file.read_text())["case"]]
    assert len({(case.command, case.name) for case in cases}) == len(cases), "two cases have one name"
    return cases


def run_case(case: Case, world: Path) -> Outcome:
    """Run one case in a copy of ``world``."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "w"
        material = copy_world(world, folder)
        spoil(folder, _with_digits(case.make))
        # The process that forks programs starts anew after a hang, which may take as long as the limit.
        run_command(["python", ROOT / "tools/score_store.py", "--help"])
        before, start = contents(folder), time.monotonic()
        try:
            run = _run(case, material, folder)
        except subprocess.TimeoutExpired:
            return Outcome(case, "hang", f"ended after {LIMIT_SECONDS} s", LIMIT_SECONDS)
        seconds = time.monotonic() - start
        after = contents(folder)
        new = sorted(
            path
            for path in after.keys() | before.keys()
            if after.get(path) != before.get(path) and Path(path).parts[0] not in CACHES
        )
        return Outcome(case, *judge(run, case.names, new), seconds)


def judge(run: Run, names: list[str], changed: list[str]) -> tuple[str, str]:
    """The fate of a run and the words that show it; ``changed`` are the files that differ from before it."""
    lines = run.output.splitlines()
    errors = list(dict.fromkeys(line for line in lines if re.match(r"(?:\S+( \w+)?: )?error: ", line)))
    if "Traceback (most recent call last)" in run.output:
        return "traceback", next((line for line in reversed(lines) if re.match(r"\S*(Error|Exception)\b", line)), "?")
    if run.returncode == 0 or not errors:
        return "silent", f"exit status {run.returncode}: {lines[-1] if lines else ''}"
    words = errors[0]
    if run.returncode != 2 or len(errors) > 1 or re.search(r"iteration +1/", run.output):
        return "unclear", f"exit status {run.returncode}, {len(errors)} lines: {words}"
    missing = [name for name in names if name not in words]
    if missing:
        return "unclear", f"does not name {', '.join(missing)}: {words}"
    if changed:
        return "left behind", f"{', '.join(changed[:4])}: {words}"
    return "clear", words


def _run(case: Case, material: Material, folder: Path) -> Run:
    changes = {name: None if value == "" else _with_digits(value) for name, value in case.set.items()}
    more = _with_digits(case.more)
    if case.command in _TOOLS:
        tool, flags = _TOOLS[case.command]
        words = [*_words(flags | changes), *more]
        if case.command == "plan" and "--" not in words:
            words += ["--", *_PLANNED]
        return run_command(["python", ROOT / f"tools/{tool}.py", *words], cwd=folder, timeout=LIMIT_SECONDS)
    if case.command == "store":
        return run_command(["python", ROOT / "tools/score_store.py", *more], cwd=folder, timeout=LIMIT_SECONDS)
    flags = [*_flags(case.command, material, changes), *more]
    if case.command == "select":
        return run_command(["python", ROOT / "tools/select_samples.py", *flags], cwd=folder, timeout=LIMIT_SECONDS)
    module = "megatron_remit.pretrain"
    if case.command == "score":
        return run_job(
            case.ranks,
            script=str(ROOT / "tools/score_corpus.py"),
            command_line=flags,
            cwd=folder,
            timeout=LIMIT_SECONDS,
        )
    return run_job(case.ranks, module=module, command_line=flags, cwd=folder, timeout=LIMIT_SECONDS)


def _with_digits(value: Any) -> Any:
    """The word DIGITS in a file of cases is a number of 5,000 digits."""
    if isinstance(value, list):
        return [_with_digits(one) for one in value]
    return "9" * 5000 if value == "DIGITS" else value


def _words(flags: dict[str, Any]) -> list[str]:
    words = []
    for name, value in flags.items():
        if value is None or value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words += map(str, value) if isinstance(value, list) else [str(value)]
    return words


def _flags(command: str, material: Material, changes: dict[str, Any]) -> list[str]:
    """Of a command that takes Megatron's flags."""
    known = {name: value for name, value in changes.items() if not isinstance(value, list)}
    lists = _words({name: value for name, value in changes.items() if isinstance(value, list)})
    known |= dict.fromkeys(name for name in changes if name not in known)
    if command == "resume":
        run: dict[str, Any] = run_flags("run") | {"load": "run", "finetune": None}
        return [*material.remit(**run | known), *lists]
    if command == "select":
        stores = {"store_large": "store", "store_small": "store_small", "out": "new", "row_seed": 3}
        return [*material.flags(**stores | known), *lists]
    if command == "score":
        return [*material.remit(**{"row_seed": 3, "score_store": "new_store"} | known), *lists]
    return [*material.remit(**known), *lists]
