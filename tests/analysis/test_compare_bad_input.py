"""What the comparison refuses, and that it does so before models run for hours."""

from pathlib import Path

import pytest

from megatron_remit.analysis.build import compare
from megatron_remit.errors import UserError
from tests.analysis.inputs import request

ALONE = {"teacher": None, "heatmap": [], "contrast": []}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model": [], "text": [], "run": [], "accuracy": []}, "nothing to compare"),
        ({"text": []}, "--model and --text go together"),
        ({"model": ["base"]}, "expected NAME=DIR"),
        ({"model": ["base={folder}/base", "base={folder}/rl"]}, "'base' is given twice"),
        ({"model": ["base={folder}/nowhere"]}, "nowhere is no folder"),
        ({"model": ["$x$={folder}/base"]}, "the name '.x.' does not do"),
        ({"model": ["_x={folder}/base"]}, "the name '_x' does not do"),
        ({"model": ["a/b={folder}/base"]}, "the name 'a/b' does not do"),
        ({"run": ["$x$={folder}/tb/ntp"]}, "the name '.x.' does not do"),
        ({**ALONE, "model": ["a={folder}/tb"]}, "does not load"),
        ({**ALONE, "model": ["rl={folder}/rl", "a={folder}/torn"]}, "a=.*torn: does not load"),
        ({**ALONE, "model": ["rl={folder}/rl", "a={folder}/bare"]}, "bare: does not load .* holds no .*safetensors"),
        (
            {**ALONE, "model": ["rl={folder}/rl", "a={folder}/narrow"]},
            "narrow: its vocab_size is 300, but the texts hold",
        ),
        ({**ALONE, "model": ["rl={folder}/rl", "a={folder}/split"]}, "it splits the texts into other tokens"),
        ({"model": ["rl={folder}/rl"], "heatmap": [], "contrast": []}, "give a second --model"),
        (
            {"model": ["rl={folder}/rl", "o={folder}/other"], "heatmap": [], "contrast": []},
            "its tokenizer is not the one",
        ),
        (
            {"model": ["rl={folder}/rl", "w={folder}/wider"], "heatmap": [], "contrast": []},
            "600 rows, the teacher's 515",
        ),
        ({"teacher": "rm"}, "no model 'rm'; --model names base, rl, sft"),
        ({"heatmap": ["rl:bose"]}, "no model 'bose'"),
        ({"contrast": ["rl"]}, "expected A:B"),
        (
            {
                **ALONE,
                "model": ["a={folder}/rl", "a-b={folder}/rl", "b-c={folder}/rl", "c={folder}/rl"],
                "heatmap": ["a:b-c", "a-b:c"],
            },
            "heatmap a-b:c: a-b-c names another pair's files",
        ),
        ({"text": ["{folder}/none.jsonl"]}, "none.jsonl: no such file"),
        ({"text": ["{folder}/empty.jsonl"]}, "no text with a token in it"),
        ({"json_key": "body"}, "texts.jsonl:1: no key 'body'"),
        ({"max_tokens": 0}, "--max-tokens 0"),
        ({"seq_length": 0}, "--seq-length 0"),
        (
            {**ALONE, "model": ["rl={folder}/rl", "s={folder}/short"]},
            "short was built for sequences of at most 16 tokens",
        ),
        ({"run": ["a={folder}/rl"]}, "no TensorBoard event file"),
        ({"run": ["a={folder}/tb"]}, "2 logs with a loss: .*tb/ntp, .*tb/remit; give each a --run"),
        ({"accuracy": ["{folder}/texts.jsonl"]}, "no column 'run'"),
        ({"accuracy": ["{folder}/none.csv"]}, "none.csv: cannot be read"),
        ({"accuracy": ["{folder}/latin.csv"]}, "latin.csv: expected CSV in UTF-8"),
        ({"accuracy": ["{folder}/share.csv"]}, "share.csv:3: expected"),
        ({"accuracy": ["{folder}/inf.csv"]}, "inf.csv:2: expected .* found inf, 1, 0.5"),
        ({"accuracy": ["{folder}/dollar.csv"]}, "dollar.csv:2: the name"),
        ({"accuracy": ["{folder}/accuracy.csv", "{folder}/accuracy.csv"]}, "'ntp' is given twice"),
        ({"accuracy": ["{folder}/accuracy.json"]}, "expected NAME=FILE.json"),
        ({"accuracy": ["a={folder}/rl/config.json"]}, 'expected JSON of the form {"points"'),
        ({"out": "{folder}/texts.jsonl"}, "--out .*texts.jsonl: cannot write there"),
        ({"out": "{folder}/texts.jsonl/out"}, "--out .*out: cannot write there"),
        ({"out": "/proc"}, "--out /proc: cannot write there"),
    ],
)
def test_bad_input_is_named_before_any_model_runs_and_nothing_is_written(
    overrides, message, folder, tmp_path, forwards
):
    (folder / "empty.jsonl").write_text('{"text": ""}\n\n')
    head = "run,tokens,seconds,accuracy\n"
    (folder / "share.csv").write_text(head + "a,1,1,0.5\na,2,2,50\n")
    (folder / "inf.csv").write_text(head + "a,inf,1,0.5\n")
    (folder / "dollar.csv").write_text(head + "a$,1,1,0.5\n")
    (folder / "latin.csv").write_bytes((head + "é,1,1,0.5\n").encode("latin-1"))

    def filled(value):
        if isinstance(value, list):
            return [filled(one) for one in value]
        return value.replace("{folder}", str(folder)) if isinstance(value, str) else value

    values = {name: filled(value) for name, value in overrides.items()}
    values |= {"text": [Path(one) for one in values["text"]]} if "text" in values else {}
    values |= {"out": Path(values["out"])} if "out" in values else {}
    with pytest.raises(UserError, match=message):
        compare(request(folder, **{"out": tmp_path / "out"} | values))
    assert not (tmp_path / "out").exists() and not forwards


@pytest.mark.parametrize("teacher", [None, "base", "nan"])
def test_a_model_that_gives_nan_is_named(teacher, folder, tmp_path):
    models = [f"{name}={folder / name}" for name in ("base", "nan")]
    with pytest.raises(UserError, match="--model nan: the log-probability of a token is NaN or infinite"):
        compare(request(folder, tmp_path, model=models, teacher=teacher, heatmap=[], contrast=[]))
    assert not any(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "runs.csv").mkdir()
    with pytest.raises(UserError, match=r"cannot write there .*runs\.csv"):
        compare(request(folder, tmp_path, model=[], text=[], teacher=None, heatmap=[], contrast=[]))
