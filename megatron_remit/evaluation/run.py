"""From exported models to the table: ``OUT/SUITE.md`` and ``OUT/SUITE.json``, beside a file for each column."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_remit.errors import DOWNLOAD, UserError, note
from megatron_remit.evaluation.execution import UNSAFE_TASKS
from megatron_remit.evaluation.results import Results, fingerprint, write_json, write_text
from megatron_remit.evaluation.suites import Column, Suite, read_suite
from megatron_remit.evaluation.table import MODELS, average, markdown, model_of, published
from megatron_remit.evaluation.tasks import LM_EVAL, build, check_installed

_DTYPES = ("auto", "bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class Request:
    """What to evaluate; the fields are the flags of ``megatron-remit evaluate``."""

    out: Path | None = None
    model: list[str] = field(default_factory=list)
    suite: str = "base"
    columns: list[str] = field(default_factory=list)
    part: str | None = None
    data_only: bool = False
    allow_code_execution: bool = False
    chat_template: bool | None = None
    paper: str | None = None
    local_data: Path | None = None
    device: str | None = None
    dtype: str = "auto"
    batch_size: int = 8
    limit: int | None = None
    max_gen_toks: int | None = None
    overwrite: bool = False


def evaluate(request: Request) -> str:
    """Run what is missing, write the table and return it; with ``data_only``, load the data sets alone.

    Raises UserError for an input that cannot be used, before any model runs; what has been run by then stays.
    """
    suite = read_suite(request.suite)
    columns = _allowed(suite.chosen(request.columns), request.allow_code_execution or request.data_only)
    if request.part is not None:
        columns = _part(columns, request.part)
    if request.data_only:
        check_installed(columns)
        tasks = [task.task_name for column in columns for task in build(column, request.local_data)]
        return f"{len(tasks)} tasks have their data: {', '.join(tasks)}\n"
    if request.out is None or not request.model:
        raise UserError("nothing to evaluate: give --out DIR and --model NAME=DIR, or --data-only")
    models = _models(request.model)
    if request.limit is not None and request.limit < 2:
        raise UserError(f"--limit {request.limit}: a standard error needs at least 2 questions of each task")
    _check_settings(request, request.out)
    shelves = {name: Results(request.out, name, suite.name, _settings(request, suite, models[name])) for name in models}
    todo = {name: _todo(shelves[name], columns, request.overwrite) for name in models}
    check_installed(tuple(column for missing in todo.values() for column in missing))
    for name, folder in models.items():
        if todo[name]:
            _run(request, shelves[name], folder, todo[name])
    scores = {name: _there(shelf, suite) for name, shelf in shelves.items()}
    text = _table(request, suite, scores, next(iter(models.values())))
    write_json(
        request.out / f"{suite.name}.json",
        {name: {"columns": results, "average": average(suite, results)} for name, results in scores.items()},
    )
    write_text(request.out / f"{suite.name}.md", text)
    return text


def _check_settings(request: Request, out: Path) -> None:
    """What torch and the disk would refuse only after the data sets and the model are there."""
    for flag, count in (("--batch-size", request.batch_size), ("--max-gen-toks", request.max_gen_toks)):
        if count is not None and count < 1:
            raise UserError(f"{flag} {count}: expected 1 or more")
    if request.dtype not in _DTYPES:
        raise UserError(f"--dtype {request.dtype}: expected one of {', '.join(_DTYPES)}")
    if request.device is not None and not re.fullmatch(r"(cpu|cuda|mps|xpu|npu|hpu)(:\d+)?", request.device):
        raise UserError(f"--device {request.device}: expected cuda, cuda:1, cpu, ...")
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"--out {out}: {there} is a file; give a folder")


def _part(columns: tuple[Column, ...], part: str) -> tuple[Column, ...]:
    """Every Nth column from the Kth, for the part ``K/N``. Raises UserError."""
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--part {part}: expected K/N with K from 1 to N, such as 2/4")
    return columns[int(found[1]) - 1 :: int(found[2])]


def _models(given: list[str]) -> dict[str, Path]:
    models: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        folder = Path(path)
        if not equals or not name or "/" in name or name.startswith("."):
            raise UserError(f"--model {text}: expected NAME=DIR, the NAME without a slash")
        if name in models:
            raise UserError(f"--model {text}: the name {name} is given twice")
        if not (folder / "config.json").is_file():
            raise UserError(
                f"--model {text}: no config.json in {folder}; give the folder that megatron-remit export wrote "
                f"({DOWNLOAD})"
            )
        models[name] = folder
    return models


def _allowed(columns: tuple[Column, ...], allow: bool) -> tuple[Column, ...]:
    """``columns`` without those that run a model's programs, unless that is allowed."""
    unsafe = [column.name for column in columns if column.task in UNSAFE_TASKS]
    if unsafe and not allow:
        note(
            f"{', '.join(unsafe)} not run: they execute programs that the model writes, without a sandbox "
            "(--allow-code-execution)"
        )
        return tuple(column for column in columns if column.task not in UNSAFE_TASKS)
    return columns


def _settings(request: Request, suite: Suite, folder: Path) -> dict[str, Any]:
    chat = suite.chat_template if request.chat_template is None else request.chat_template
    return {
        "model": fingerprint(folder),
        "suite": suite.version,
        "lm_eval": LM_EVAL,
        "chat_template": chat,
        "dtype": request.dtype,
        "limit": request.limit,
        "max_gen_toks": request.max_gen_toks,
        "local_data": str(request.local_data) if request.local_data else None,
    }


def _todo(shelf: Results, columns: tuple[Column, ...], overwrite: bool) -> tuple[Column, ...]:
    return tuple(column for column in columns if overwrite or shelf.read(column.name) is None)


def _run(request: Request, shelf: Results, folder: Path, columns: tuple[Column, ...]) -> None:
    from megatron_remit.evaluation.column import Judge

    judge = Judge(folder, request.device, request.dtype, request.batch_size, shelf.settings["chat_template"])
    for column in columns:
        print(f"> {shelf.model}: {column.name} ({column.task}, {column.shots} shots)", flush=True)
        result = judge.column(column, request.local_data, request.limit, request.max_gen_toks)
        shelf.write(column.name, result)
        print(f"  {result['score']:.2f} ± {result['stderr']:.2f} % of {result['questions']}", flush=True)


def _there(shelf: Results, suite: Suite) -> dict[str, dict[str, Any]]:
    """All columns of the suite that have been run, whoever ran them."""
    found = {column.name: shelf.read(column.name) for column in suite.columns}
    return {name: result for name, result in found.items() if result is not None}


def _table(request: Request, suite: Suite, scores: dict[str, dict[str, dict[str, Any]]], first: Path) -> str:
    try:
        model = request.paper or model_of(first)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{first}/config.json: cannot be read ({error})") from None
    lines = published(suite.name, model) if model in MODELS else []
    text = markdown(suite, scores, lines)
    if request.limit is not None or request.max_gen_toks is not None:
        text += "\nNot comparable: --limit or --max-gen-toks was given.\n"
    shots = ", ".join(f"{column.name} {column.task} {column.shots}" for column in suite.columns)
    return text + f"\nlm_eval {LM_EVAL}; tasks and shots: {shots}. ±: one standard error.\n"
