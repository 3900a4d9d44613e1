"""One column of one model: lm-eval runs its tasks, and their questions are counted together."""

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_remit.errors import UserError
from megatron_remit.evaluation.suites import Column
from megatron_remit.evaluation.tasks import build


class Judge:
    """A model in lm-eval's hands. ``device`` and ``dtype`` as in lm-eval; None: CUDA where there is one."""

    def __init__(self, folder: Path, device: str | None, dtype: str, batch_size: int, chat_template: bool) -> None:
        import torch
        from lm_eval.models.huggingface import HFLM

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            # With the cache of logits on, requests that share a context but differ in length are scored wrongly.
            self.model = HFLM(
                pretrained=str(folder), dtype=dtype, device=device, batch_size=batch_size, logits_cache=False
            )
        except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
            raise UserError(f"{folder}: lm-eval does not load it as a model with its tokenizer: {error}") from error
        if chat_template and self.model.tokenizer.chat_template is None:
            raise UserError(
                f"{folder}: its tokenizer has no chat template, through which this suite's prompts go; add one, or "
                "give --no-chat-template"
            )
        self.chat_template = chat_template

    def column(
        self, column: Column, local_data: Path | None, limit: int | None, max_gen_toks: int | None
    ) -> dict[str, Any]:
        """Score ``column``: ``score`` and ``stderr`` in percent, the ``questions`` that were asked, and each task's
        figures with lm-eval's version of it.

        ``limit``: the first questions of each task only; ``max_gen_toks``: the longest answer in tokens, in place of
        the task's own. Raises UserError as ``build``.
        """
        from lm_eval.defaults import DEFAULT_OTHER_SEED
        from lm_eval.evaluator import evaluate

        built = {task.task_name: task for task in build(column, local_data)}
        for task in built.values():
            task.set_fewshot_seed(DEFAULT_OTHER_SEED)
            if max_gen_toks and task.get_config("output_type") == "generate_until":
                task.set_config(key="generation_kwargs", value={"max_gen_toks": max_gen_toks}, update=True)
        results = evaluate(
            lm=self.model,
            task_dict={"tasks": built, "groups": {}, "group_map": {}},
            limit=limit,
            apply_chat_template=self.chat_template,
            fewshot_as_multiturn=self.chat_template,
            confirm_run_unsafe_code=True,  # run.py has asked
            bootstrap_iters=0,
        )
        tasks = {
            name: {
                "score": figures[column.metric],
                "stderr": _stderr(results["samples"][name], *column.metric.split(",")),
                "questions": results["n-samples"][name]["effective"],
                "version": results["versions"].get(name),
                "all": {key: value for key, value in figures.items() if isinstance(value, float)},
            }
            for name, figures in results["results"].items()
        }
        return pooled(list(tasks.values())) | {"tasks": tasks}


def pooled(tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The score of all tasks' questions together in percent, with its standard error: the tasks are fixed, the
    questions of each a sample."""
    questions = sum(task["questions"] for task in tasks)
    score = sum(task["questions"] * task["score"] for task in tasks) / questions
    variance = sum((task["questions"] / questions * task["stderr"]) ** 2 for task in tasks)
    return {"score": 100 * score, "stderr": 100 * math.sqrt(variance), "questions": questions}


def _stderr(samples: Sequence[dict[str, Any]], metric: str, chain: str) -> float:
    """Standard error of a task's score as a share. lm-eval has none for IFEval, whose questions hold 1 to 3
    instructions each."""
    values = [sample[metric] for sample in samples if sample["filter"] == chain]
    return ratio_stderr([value if isinstance(value, list) else [value] for value in values])


def ratio_stderr(answers: Sequence[Sequence[float]]) -> float:
    """Standard error of the mean of all numbers, where those of one question belong together (a ratio estimator; with
    one number per question, the usual one of a mean). Not a number for a single question."""
    count = sum(len(answer) for answer in answers)
    if len(answers) < 2:
        return math.nan
    mean = sum(map(sum, answers)) / count
    squares = sum((sum(answer) - mean * len(answer)) ** 2 for answer in answers)
    return math.sqrt(squares * len(answers) / (len(answers) - 1)) / count
