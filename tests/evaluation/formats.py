"""Tiny local copies of the data sets that the suites read: the columns of each as lm-eval's task files read them."""

import json

from megatron_remit.evaluation.suites import SUITES, read_suite
from megatron_remit.evaluation.tasks import task_names

ROWS = 3
MMLU_PRO = ("biology", "business", "chemistry", "computer science", "economics", "engineering", "health", "history")
MMLU_PRO += ("law", "math", "other", "philosophy", "physics", "psychology")


def _letters(texts):
    return {"text": texts, "label": list("ABCDE"[: len(texts)])}


def _gsm8k(n):
    return {"question": f"What is {n} and {n}?", "answer": f"It is {n} + {n} = {2 * n}.\n#### {2 * n}"}


def _math(n):
    return {"problem": f"Find ${n}^2$.", "solution": f"It is $\\boxed{{{n * n}}}$.", "level": "1", "type": "Algebra"}


def _gpqa(n):
    wrong = {f"Incorrect Answer {i}": f"{n + i} metres" for i in (1, 2, 3)}
    return {"Question": f"How far is {n}?", "Correct Answer": f"{n} metres"} | wrong


def _ifeval(n):
    # Neither of these checks needs nltk's data.
    instructions = ["punctuation:no_comma", "length_constraints:number_words"][: 1 + n % 2]
    kwargs = [{}, {"num_words": 1000, "relation": "less than"}][: 1 + n % 2]
    return {"key": n, "prompt": f"Write {n} words.", "instruction_id_list": instructions, "kwargs": kwargs}


def _humaneval(n):
    prompt = f'def add_{n}(x):\n    """x and {n}"""\n'
    test = f"def check(candidate):\n    assert candidate(1) == {n + 1}\n"
    return {"task_id": f"HumanEval/{n}", "prompt": prompt, "test": test, "entry_point": f"add_{n}"}


def _mbpp(n):
    tests = [f"assert add({i}) == {i + n}" for i in range(3)]
    return {"task_id": n, "text": f"Add {n}.", "prompt": f"Add {n}.", "code": "", "test_list": tests}


def _truthfulqa(n):
    return {"question": f"Is {n} one?", "mc1_targets": {"choices": ["No.", "Yes.", "Ask me."], "labels": [1, 0, 0]}}


def _choice(n, stem, count):
    return {
        stem: f"Which is {n}?",
        "choices": _letters([f"number {i}" for i in range(count)]),
        "answerKey": "ABC"[n % 3],
    }


def _mmlu_pro(n):
    row = {"question": f"What is {n}?", "options": ["one", "two", "three"], "answer": "B"}
    return row | {"cot_content": "A: Let's think step by step. The answer is (B)."}


def _hellaswag(n):
    endings = [f"goes {way}." for way in ("up", "down", "left", "right")]
    return {"activity_label": "Walk", "ctx_a": "A man", "ctx_b": f"number {n}", "endings": endings, "label": f"{n % 4}"}


def _siqa(n):
    answers = {"answerA": "sad", "answerB": "glad", "answerC": "calm"}
    return {"context": f"Kim won {n}.", "question": "How is Kim?", "label": f"{1 + n % 3}"} | answers


def _winogrande(n):
    return {
        "sentence": f"Kim beat Lee {n} times, so _ won.",
        "option1": "Kim",
        "option2": "Lee",
        "answer": f"{1 + n % 2}",
    }


def _musr(n):
    choices = str(["Kim", "Lee"])
    return {
        "narrative": f"{n} were there.",
        "question": "Who?",
        "choices": choices,
        "answer_choice": ["Kim", "Lee"][n % 2],
    }


# Task, or the head of the names of a group's tasks -> its splits and what makes a row.
FORMATS = {
    "gsm8k_cot": (("test",), _gsm8k),
    "gsm8k_cot_zeroshot": (("train", "test"), _gsm8k),
    "minerva_math_": (("train", "test"), _math),
    "gpqa_": (("train",), _gpqa),
    "bbh_cot_fewshot_": (("test",), lambda n: {"input": f"Is {n} odd?", "target": "yes"}),
    "ifeval": (("train",), _ifeval),
    "humaneval": (("test",), _humaneval),
    "mbpp": (("test",), _mbpp),
    "truthfulqa_mc1": (("validation",), _truthfulqa),
    "arc_challenge": (("train", "validation", "test"), lambda n: _choice(n, "question", 4)),
    "hellaswag": (("train", "validation"), _hellaswag),
    "piqa": (
        ("train", "validation"),
        lambda n: {"goal": f"Cut {n}.", "sol1": "knife", "sol2": "spoon", "label": n % 2},
    ),
    "social_iqa": (("train", "validation"), _siqa),
    "winogrande": (("train", "validation"), _winogrande),
    "openbookqa": (("train", "validation", "test"), lambda n: _choice(n, "question_stem", 4)),
    "commonsense_qa": (("train", "validation"), lambda n: _choice(n, "question", 5)),
    "leaderboard_musr_": (("murder_mysteries", "object_placements", "team_allocation"), _musr),
}


def _format(task):
    if task.startswith("mmlu_pro_"):
        subject = next(subject for subject in MMLU_PRO if task == f"mmlu_pro_{subject.replace(' ', '_')}")
        return ("validation", "test"), lambda n: _mmlu_pro(n) | {"category": subject}
    best = max((head for head in FORMATS if task.startswith(head)), key=len)
    return FORMATS[best]


def write_formats(folder):
    """FOLDER/TASK/SPLIT.jsonl for every task of every suite. As many rows as the largest number of shots needs, and one
    more, in what examples are drawn from."""
    shots = {
        name: column.shots
        for suite in SUITES
        for column in read_suite(suite).columns
        for name in task_names(column.task)
    }
    shots |= {name: column.shots for column in read_suite("base").columns for name in task_names(column.task)}
    for task, count in shots.items():
        splits, row = _format(task)
        (folder / task).mkdir(parents=True)
        for split in splits:
            rows = ROWS if split == "test" else max(ROWS, count + 1)
            text = "".join(json.dumps(row(n)) + "\n" for n in range(rows))
            (folder / task / f"{split}.jsonl").write_text(text)
    return folder
