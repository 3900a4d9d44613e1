"""The evaluation end to end, on tiny copies of the data sets and a tiny random model."""

import json
import random
import shutil
import sys

import pytest

from megatron_remit.errors import UserError
from megatron_remit.evaluation.column import pooled, ratio_stderr
from megatron_remit.evaluation.run import Request, evaluate
from megatron_remit.evaluation.suites import SUITES, read_suite
from megatron_remit.evaluation.table import model_of
from megatron_remit.evaluation.tasks import build
from megatron_remit.programs.evaluate import main

QUICK = {"limit": 2, "max_gen_toks": 4, "device": "cpu"}


def request(tiny, formats, out, **overrides):
    return Request(**{"out": out, "model": [f"Tiny={tiny}"], "local_data": formats} | QUICK | overrides)


def cells(text, method):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    ((_, *found),) = (line for line in lines if line[0] == method)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_every_column_of_every_table_has_a_score(tiny, formats, tmp_path, suite):
    text = evaluate(
        request(tiny, formats, tmp_path / "out", suite=suite, allow_code_execution=True, chat_template=False)
    )
    scores = cells(text, "Tiny")
    assert len(scores) == len(read_suite(suite).columns) + 1
    assert all("±" in score for score in scores)
    assert text == (tmp_path / "out" / f"{suite}.md").read_text()
    results = json.loads((tmp_path / "out" / f"{suite}.json").read_text())["Tiny"]
    assert list(results["columns"]) == [column.name for column in read_suite(suite).columns]
    mean = sum(column["score"] for column in results["columns"].values()) / len(results["columns"])
    assert results["average"]["score"] == pytest.approx(mean)


def test_the_papers_scores_stand_below_those_of_the_same_architecture(tiny, formats, tmp_path):
    text = evaluate(request(tiny, formats, tmp_path, columns=["TQA"]))
    assert model_of(tiny) == "OLMo-1B"
    assert cells(text, "ReMiT (paper, OLMo-1B, table 1)")[-4:] == ["25.58", "49.23", "17.44", "27.56"]
    assert "Youtu" not in text
    assert "paper" not in evaluate(request(tiny, formats, tmp_path, columns=["TQA"], paper="none"))


def test_a_column_that_is_there_is_not_run_again_and_the_others_are(tiny, formats, tmp_path, capsys):
    evaluate(request(tiny, formats, tmp_path, columns=["TQA"]))
    written = (tmp_path / "Tiny/base/TQA.json").stat().st_mtime_ns
    capsys.readouterr()
    text = evaluate(request(tiny, formats, tmp_path, columns=["TQA", "ARC-C"]))
    assert "TQA (" not in capsys.readouterr().out
    assert (tmp_path / "Tiny/base/TQA.json").stat().st_mtime_ns == written
    assert ["±" in cell for cell in cells(text, "Tiny")] == [False] * 7 + [True, True, False, False]
    evaluate(request(tiny, formats, tmp_path, columns=["TQA"], overwrite=True))
    assert (tmp_path / "Tiny/base/TQA.json").stat().st_mtime_ns > written


def test_models_stand_side_by_side_and_equal_ones_have_equal_scores(tiny, formats, tmp_path):
    shutil.copytree(tiny, tmp_path / "copy")
    models = [f"NTP={tiny}", f"ReMiT={tmp_path / 'copy'}"]
    text = evaluate(request(tiny, formats, tmp_path / "out", model=models, columns=["GPQA", "ARC-C"]))
    assert cells(text, "NTP") == cells(text, "ReMiT")


@pytest.mark.parametrize(("suite", "name"), [("base", "GPQA"), ("zero-shot", "GPQA_DM")])
def test_the_choices_of_gpqa_are_scored_in_the_order_in_which_they_were_asked(
    formats, tmp_path, monkeypatch, suite, name
):
    """With a new cache: lm-eval's own tasks shuffle anew at each reading then."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    (column,) = read_suite(suite).chosen([name])
    (task,) = build(column, formats)
    readings = [[doc["answer"] for doc in task.eval_docs] for _ in range(2)]
    random.random()
    readings.append([doc["answer"] for doc in build(column, formats)[0].eval_docs])
    assert readings[0] == readings[1] == readings[2]
    assert len(set(readings[0])) > 1  # they are shuffled all the same


def test_another_model_under_the_same_name_is_refused(tiny, formats, tmp_path):
    evaluate(request(tiny, formats, tmp_path / "out", columns=["TQA"]))
    shutil.copytree(tiny, tmp_path / "other")
    config = json.loads((tmp_path / "other/config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(UserError, match=r"TQA.json: there with model .* --overwrite"):
        evaluate(request(tiny, formats, tmp_path / "out", model=[f"Tiny={tmp_path / 'other'}"], columns=["TQA"]))
    with pytest.raises(UserError, match="there with limit 2, this run has 3"):
        evaluate(request(tiny, formats, tmp_path / "out", columns=["TQA"], limit=3))


def test_no_program_of_the_model_runs_unless_that_is_allowed(tiny, formats, tmp_path, capsys):
    text = evaluate(request(tiny, formats, tmp_path, columns=["HE", "MBPP", "TQA"]))
    assert "HE, MBPP not run" in capsys.readouterr().err
    assert ["±" in cell for cell in cells(text, "Tiny")].count(True) == 1
    assert not (tmp_path / "Tiny/base/HE.json").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model": ["TINY"]}, "expected NAME=DIR"),
        ({"model": ["A=allenai/OLMo-2-0425-1B"]}, "hf download NAME"),
        ({"columns": ["GSM"]}, "--columns GSM: the suite base has GSM8K, MATH"),
        ({"suite": "paper"}, "--suite paper: expected one of base, extended, zero-shot"),
        ({"part": "3/2"}, "--part 3/2: expected K/N"),
        ({"model": []}, "nothing to evaluate: give --out"),
        ({"limit": 1}, "--limit 1: a standard error needs"),
        ({"columns": ["TQA"], "local_data": None}, "TQA: the data truthfulqa/truthful_qa .* --local-data"),
        ({"suite": "zero-shot", "columns": ["ARC-C"]}, "no chat template.* --no-chat-template"),
    ],
)
def test_bad_input_is_one_line(tiny, formats, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        evaluate(request(tiny, formats, tmp_path / "out", **overrides))
    assert not list(tmp_path.rglob("*.json"))


def test_parts_share_the_columns_among_jobs(tiny, formats, tmp_path):
    wanted = {"columns": ["TQA", "ARC-C", "GPQA"]}
    evaluate(request(tiny, formats, tmp_path, part="1/2", **wanted))
    assert sorted(path.stem for path in (tmp_path / "Tiny/base").iterdir()) == ["ARC-C", "GPQA"]
    text = evaluate(request(tiny, formats, tmp_path, part="2/2", **wanted))
    assert ["±" in cell for cell in cells(text, "Tiny")].count(True) == 3


def test_data_sets_can_be_loaded_without_a_model(formats):
    text = evaluate(Request(data_only=True, local_data=formats, columns=["TQA", "HE"]))
    assert text == "2 tasks have their data: humaneval, truthfulqa_mc1\n"


def test_missing_local_data_are_named(tiny, tmp_path):
    with pytest.raises(UserError, match=r"no file truthfulqa_mc1/SPLIT.jsonl"):
        evaluate(request(tiny, tmp_path / "nothing", tmp_path / "out", columns=["TQA"]))


def test_data_of_nltk_that_are_missing_are_named_before_the_model_answers(tiny, formats, tmp_path, monkeypatch):
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(UserError, match=r"nltk.downloader punkt_tab"):
        evaluate(request(tiny, formats, tmp_path / "out", columns=["IFE"]))


def test_without_lm_eval_the_error_says_how_to_install_it(tiny, formats, tmp_path, monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("megatron_remit.evaluation.tasks.version", version)
    with pytest.raises(UserError, match=r"lm_eval is not installed: pip install 'megatron-remit\[flywheel\]'"):
        evaluate(request(tiny, formats, tmp_path / "out", columns=["TQA"]))


def test_the_command_prints_the_table(tiny, formats, tmp_path, monkeypatch, capsys):
    flags = ["--out", tmp_path, "--model", f"Tiny={tiny}", "--local-data", formats, "--columns", "TQA", "--limit", 2]
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, flags)])
    main()
    assert (tmp_path / "base.md").read_text() in capsys.readouterr().out


def test_standard_errors_are_those_of_a_mean_and_of_a_stratified_sample():
    assert ratio_stderr([[1], [0], [1], [1]]) == pytest.approx((0.75 * 0.25 / 3) ** 0.5)
    # Two instructions that always go together tell no more than one.
    assert ratio_stderr([[1, 1], [0, 0], [1, 1], [1, 1]]) == pytest.approx(ratio_stderr([[1], [0], [1], [1]]))
    tasks = [{"score": 0.5, "stderr": 0.1, "questions": 30}, {"score": 0.9, "stderr": 0.2, "questions": 10}]
    assert pooled(tasks) == pytest.approx({"score": 60.0, "stderr": 100 * (0.075**2 + 0.05**2) ** 0.5, "questions": 40})
