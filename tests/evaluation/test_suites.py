"""The suites name tasks, metrics and data that lm-eval 0.4.13 has, and the paper's scores fit them."""

from importlib.metadata import version

import pytest
from lm_eval.api.group import Group
from lm_eval.tasks import TaskManager

from megatron_remit.evaluation.execution import UNSAFE_TASKS
from megatron_remit.evaluation.suites import FOLDER, SUITES, read_suite
from megatron_remit.evaluation.table import published
from megatron_remit.evaluation.tasks import LM_EVAL, config, task_names
from tests.ranks import ROOT

# The versions that lm-eval 0.4.13 gives these tasks. Another number would mean other prompts or other answers.
VERSIONS = {
    "gsm8k_cot": 3.0,
    "gsm8k_cot_zeroshot": 3.0,
    "minerva_math": 3.1,
    "gpqa_main_n_shot": 2.2,
    "gpqa_diamond_zeroshot": 2.2,
    "bbh_cot_fewshot": 4.0,
    "ifeval": 4.0,
    "humaneval": 1.0,
    "humaneval_plus": 1.0,
    "mbpp": 1.0,
    "mbpp_plus": 1.0,
    "truthfulqa_mc1": 2.0,
    "arc_challenge": 1.0,
    "mmlu_pro": 3.1,
    "hellaswag": 1.0,
    "piqa": 1.0,
    "social_iqa": 0.0,
    "winogrande": 1.0,
    "openbookqa": 1.0,
    "commonsense_qa": None,
    "leaderboard_musr": 1.0,
}
COLUMNS = {(column.task, column.metric) for suite in SUITES for column in read_suite(suite).columns}
# Scores that are no whole number of right answers: misprints of the paper, or other numbers of questions.
NOT_WHOLE = {
    ("Youtu-LLM-2B", "ReMiT", "HE"),
    ("OLMo-1B", "ReMiT, after SFT", "GSM8K"),  # 47.00 for 47.005: rounded down
    ("OLMo-1B", "KD, after DPO", "GPQA_DM"),
    ("OLMo-1B", "Vanilla NTP, after RL", "MBPP+"),
    ("OLMo-1B", "KD, after RL", "MBPP"),
    ("OLMo-1B", "KD, after RL", "MBPP+"),
    ("OLMo-1B", "ReMiT, after RL", "MBPP+"),
    ("OLMo-1B", "ReMiT, after RL", "HE"),
}


def test_the_extended_suite_has_the_seven_further_benchmarks_of_the_paper():
    (extended,) = (read_suite(suite) for suite in SUITES if "extended" in suite)
    names = ["HellaSwag", "PIQA", "SIQA", "WinoGrande", "OBQA", "CSQA", "MuSR"]
    assert [column.name for column in extended.columns] == names


def test_the_version_that_the_suites_are_written_for_is_the_pinned_one():
    assert f'"lm_eval[ifeval,math]=={LM_EVAL}"' in (ROOT / "pyproject.toml").read_text()
    assert version("lm_eval") == LM_EVAL


@pytest.mark.parametrize("task", sorted({task for task, _ in COLUMNS}))
def test_lm_eval_has_each_task_in_the_version_that_was_read(task):
    found = {config(name, {}).get("metadata", {}).get("version") for name in task_names(task)}
    assert found == {VERSIONS[task]}


@pytest.mark.parametrize(("task", "metric"), sorted(COLUMNS))
def test_each_column_reads_a_metric_and_a_filter_of_its_task(task, metric):
    wanted, chain = metric.split(",")
    for name in task_names(task):
        content = config(name, {})
        metrics = {
            entry["metric"] if isinstance(entry["metric"], str) else entry["metric"].__name__
            for entry in content["metric_list"]
        }
        assert wanted.replace("pass@1", "pass_at_k") in metrics
        assert chain in {step["name"] for step in content.get("filter_list", ())} | {"none"}


@pytest.mark.parametrize("suite", SUITES)
def test_each_suite_is_a_group_that_lm_eval_reads_by_itself(suite):
    group = TaskManager(include_path=str(FOLDER), include_defaults=False).task_index[
        read_suite(suite).name.replace("-", "_").join(["remit_", ""])
    ]
    assert group.yaml_path == FOLDER / f"{suite}.yaml"
    assert [entry["task"] for entry in group.cfg["task"]] == [column.task for column in read_suite(suite).columns]
    Group.from_config({"group": group.cfg["group"], "task": [], "metadata": group.cfg["metadata"]})


def test_the_shots_of_the_base_suite_are_those_of_appendix_d3():
    shots = {column.name: column.shots for column in read_suite("base").columns}
    assert shots == dict(GSM8K=8, MATH=4, GPQA=5, BBH=3, IFE=3, HE=0, MBPP=3, TQA=3, MMLU_P=5) | {"ARC-C": 25}
    assert {column.shots for column in read_suite("zero-shot").columns} == {0}


def test_every_task_that_executes_code_is_known_as_such():
    marked = {task for task, _ in COLUMNS for name in task_names(task) if config(name, {}).get("unsafe_code")}
    assert marked == set(UNSAFE_TASKS)


@pytest.mark.parametrize("line", published(), ids=lambda line: f"{line.table}-{line.model}-{line.method}")
def test_the_papers_average_is_the_mean_of_its_columns(line):
    columns = [column.name for column in read_suite(line.suite).columns]
    assert [*columns, "Avg."] == list(line.scores)
    assert sum(line.scores[name] for name in columns) / len(columns) == pytest.approx(line.scores["Avg."], abs=0.0051)


def test_the_papers_scores_are_whole_numbers_of_the_columns_questions():
    """This is how the data sets and metrics were found: 834 instructions of IFEval, 817 questions of TruthfulQA mc1."""
    broken = set()
    for line in published():
        for column in read_suite(line.suite).columns:
            score = line.scores[column.name]
            right = round(score / 100 * column.questions)
            if abs(100 * right / column.questions - score) > 0.00501:
                broken.add((line.model, line.method, column.name))
    assert broken == NOT_WHOLE
