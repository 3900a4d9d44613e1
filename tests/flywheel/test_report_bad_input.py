"""Every missing or malformed input of the report is named, and nothing is written."""

import json
import shutil

import pytest
from report.build import build_report

from megatron_remit.errors import UserError


def refused(folder, *words):
    with pytest.raises(UserError) as caught:
        build_report(folder)
    for word in words:
        assert word in str(caught.value)
    assert not (folder / "report.html").exists() and not (folder / "results.json").exists()


@pytest.mark.parametrize("path", ["settings.json", "timings.json", "data/heldout.jsonl"])
def test_missing_file(broken, path):
    (broken / path).unlink()
    refused(broken, path.rsplit("/", maxsplit=1)[-1], "missing")


@pytest.mark.parametrize("path", ["hf/base", "hf/rl_reference"])
def test_missing_folder(broken, path):
    shutil.rmtree(broken / path)
    refused(broken, path)


@pytest.mark.parametrize("path", ["settings.json", "timings.json", "eval/methods.ntp.1a.json"])
def test_half_written_json(broken, path):
    content = (broken / path).read_text()
    (broken / path).write_text(content[: len(content) // 2])
    refused(broken, path, "not valid JSON")


def test_a_run_without_ntp(broken):
    for path in (broken / "eval").glob("methods.ntp.*"):
        path.unlink()
    refused(broken, "eval", "no cell of NTP")


@pytest.mark.parametrize("change", [{"sequence_length": None}, {"epsilon": 1.5}])
def test_impossible_setting(broken, change):
    path = broken / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(broken, "settings.json", next(iter(change)))


def test_broken_heldout_line_is_named(broken):
    with (broken / "data" / "heldout.jsonl").open("a") as file:
        file.write('{"text": "no task"}\n')
    refused(broken, "heldout.jsonl", "line 13", "task")


def test_weights_of_another_shape(broken):
    path = broken / "hf" / "rl_reference" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    refused(broken, "hf/rl_reference")


def test_tokenizers_that_disagree(broken):
    path = broken / "hf" / "rl_reference" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:5]
    path.write_text(json.dumps(content))
    refused(broken, "rl_reference", "tokenizer")


def test_impossible_flags(run_dir, tmp_path):
    with pytest.raises(UserError, match="--max-texts 0"):
        build_report(run_dir, max_texts=0)
    with pytest.raises(UserError, match="nowhere"):
        build_report(run_dir, tmp_path / "nowhere" / "report.html")
