"""lm-eval's tasks: those of a column, with the suite's number of shots, on local files where there are some."""

import inspect
import random
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from megatron_remit.errors import UserError
from megatron_remit.evaluation import execution
from megatron_remit.evaluation.suites import Column

LM_EVAL = "0.4.13"
SHUFFLE_SEED = 42  # that of lm-eval's own generator in gpqa/n_shot/utils.py
INSTALL = "pip install 'megatron-remit[flywheel]' brings it (in a checkout: .venv/bin/pip install -e '.[flywheel]')"
# What lm-eval's own task files import, by the distribution's name.
NEEDED = {
    "ifeval": ("langdetect", "immutabledict", "nltk"),
    "minerva_math": ("math-verify", "antlr4-python3-runtime", "sympy"),
}
# The functions in lm-eval's files that would load ``code_eval`` from the hub, and what stands in for them.
_REPLACED = {
    "utils.pass_at_k": execution.pass_at_k,
    "utils.pass_at_1": execution.pass_at_1,
    "utils.build_predictions": execution.continued,
}


def check_installed(columns: tuple[Column, ...]) -> None:
    """Raises UserError if lm-eval, its version, or what a column's task imports is missing."""
    try:
        found = version("lm_eval")
    except PackageNotFoundError:
        raise UserError(f"lm_eval is not installed: {INSTALL}") from None
    if found != LM_EVAL:
        raise UserError(f"lm_eval {found} is installed, the suites are written for {LM_EVAL}: {INSTALL}")
    for column in columns:
        for package in NEEDED.get(column.task, ()):
            try:
                version(package)
            except PackageNotFoundError:
                raise UserError(f"{package} is not installed, which {column.task} needs: {INSTALL}") from None
        if column.task == "ifeval":
            _check_sentences()


def _check_sentences() -> None:
    """IFEval counts sentences, at the end of hours of answers, with a data file that is in no package."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        raise UserError(
            "ifeval needs nltk's data punkt_tab, which are not there: where there is a network, run "
            "'python -m nltk.downloader punkt_tab' (into NLTK_DATA, if that is set)"
        ) from None


@cache
def _manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()  # reads the head of every task file: seconds


def task_names(task: str) -> list[str]:
    """The tasks of a group in lm-eval's order, or the task itself. Raises UserError if lm-eval has no such name."""
    from lm_eval.tasks._index import Kind

    entry = _manager().task_index.get(task)
    if entry is None:
        raise UserError(f"lm_eval {version('lm_eval')} has no task '{task}'")
    return [name for name in _yaml(task)["task"]] if entry.kind == Kind.GROUP else [task]


def config(task: str, overrides: dict[str, Any], local_data: Path | None = None) -> dict[str, Any]:
    """The config of lm-eval's ``task`` with ``overrides``, its data from ``local_data/TASK/SPLIT.jsonl`` if given.

    Raises UserError if there are no such files.
    """
    content = _yaml(task) | overrides
    if task.startswith("gpqa_"):
        content["process_docs"] = settled(content["process_docs"])
    for key in ("tag", "group"):
        content.pop(key, None)
    if local_data is not None:
        content |= {
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": _files(local_data, task)},
        }
    return content


def settled(process_docs: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``process_docs`` of lm-eval's GPQA, with the same order of choices whenever it is called.

    It shuffles with a generator that goes on from call to call (of its own, or Python's), and lm-eval 0.4.13 calls it
    to ask and again to score. Only the cache of ``datasets`` hides that, from the second run on: in the first, answers
    of gpqa_main_n_shot are scored against other choices than those that were asked.
    """

    def process(dataset: Any) -> Any:
        import datasets

        before, cached = random.getstate(), datasets.is_caching_enabled()
        random.seed(SHUFFLE_SEED)
        own = getattr(process_docs, "__globals__", {}).get("rng")
        if own is not None:
            own.seed(SHUFFLE_SEED)
        datasets.disable_caching()
        try:
            return process_docs(dataset)
        finally:
            random.setstate(before)
            if cached:
                datasets.enable_caching()

    return process


def _yaml(task: str) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    path = _manager().task_index[task].yaml_path
    if task not in execution.UNSAFE_TASKS:
        return load_yaml(path)
    content = load_yaml(path, resolve_func=False)
    # A function is now the path of its file without the suffix, and its name after a dot.
    content["metric_list"] = [
        entry | {"metric": _replaced(entry["metric"], path.parent)} for entry in content["metric_list"]
    ]
    for chain in content.get("filter_list", ()):
        for step in chain["filter"]:
            step["filter_fn"] = _replaced(step["filter_fn"], path.parent)
    if content.get("fewshot_config"):
        content["fewshot_config"] |= {"samples": _literal_of(path.parent / "utils.py", "list_fewshot_samples")}
    return content


def _replaced(function: str, folder: Path) -> Any:
    return _REPLACED[str(Path(function).relative_to(folder))]


def _literal_of(file: Path, function: str) -> list[dict[str, Any]]:
    """What ``function`` of ``file`` returns, if that is a literal: importing the file would load code_eval."""
    import ast

    (node,) = (
        node
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    )
    (end,) = (statement for statement in node.body if isinstance(statement, ast.Return))
    return ast.literal_eval(end.value) if end.value is not None else []


def _files(local_data: Path, task: str) -> dict[str, str]:
    files = {path.stem: str(path.resolve()) for path in sorted((local_data / task).glob("*.jsonl"))}
    if not files:
        raise UserError(f"--local-data {local_data}: no file {task}/SPLIT.jsonl in it (docs/evaluation.md)")
    return files


def build(column: Column, local_data: Path | None) -> list[Any]:
    """lm-eval's ``ConfigurableTask`` of each task of ``column``; this loads their data.

    Raises UserError if data are not there.
    """
    from lm_eval.api.task import ConfigurableTask

    tasks = []
    for name in task_names(column.task):
        content = config(name, column.overrides, local_data)
        try:
            tasks.append(ConfigurableTask(config=content))
        # Not cached and no network, gated, or not of the columns that the task reads: each library has its own errors.
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(
                f"{column.name}: the data {content['dataset_path']} of lm-eval's {name} do not load "
                f"({_first_line(error)}); download them where there is a network, or give --local-data"
            ) from error
    return tasks


def _first_line(error: Exception) -> str:
    lines = inspect.cleandoc(str(error)).splitlines()
    return lines[0] if lines else type(error).__name__
