"""Every missing or malformed input of the report is named, and nothing is written."""

import json
import shutil

import pytest
from report.build import build_report
from torch.utils.tensorboard import SummaryWriter

from megatron_remit.errors import UserError
from tests.flywheel.synthetic import write_log


def refused(folder, *words):
    for name in ("report.html", "results.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(UserError) as caught:
        build_report(folder)
    for word in words:
        assert word in str(caught.value)
    assert not (folder / "report.html").exists() and not (folder / "results.json").exists()


@pytest.mark.parametrize(
    "path",
    [
        "settings.json",
        "timings.json",
        "data/heldout.jsonl",
        *(f"eval/{arm}.json" for arm in ("base", "rl_reference", "ntp", "remit", "remit_nonrl")),
    ],
)
def test_missing_file(broken, path):
    (broken / path).unlink()
    refused(broken, path.rsplit("/", maxsplit=1)[-1], "missing")


@pytest.mark.parametrize("path", ["tb/ntp", "tb/remit", "tb/remit_nonrl", "hf/base", "hf/rl_reference"])
def test_missing_folder(broken, path):
    shutil.rmtree(broken / path)
    refused(broken, path)


@pytest.mark.parametrize("path", ["settings.json", "timings.json", "eval/ntp.json"])
def test_half_written_json(broken, path):
    content = (broken / path).read_text()
    (broken / path).write_text(content[: len(content) // 2])
    refused(broken, path, "not valid JSON")


@pytest.mark.parametrize(
    ("value", "words"),
    [({"accuracy": 1.5, "stderr": 0.1, "n": 10}, ["1.5"]), ({"stderr": 0.1, "n": 10}, ["accuracy"])],
)
def test_impossible_evaluation(broken, value, words):
    (broken / "eval" / "ntp.json").write_text(json.dumps({"arm": "ntp", "tasks": {"two_step": value}}))
    refused(broken, "ntp.json", *words)


def test_arms_on_different_tasks(broken):
    path = broken / "eval" / "remit.json"
    content = json.loads(path.read_text())
    del content["tasks"]["three_step"]
    path.write_text(json.dumps(content))
    refused(broken, "remit.json", "three_step")


@pytest.mark.parametrize("change", [{"sequence_length": None}, {"epsilon": 1.5}])
def test_impossible_setting(broken, change):
    path = broken / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(broken, "settings.json", next(iter(change)))


def test_ntp_log_in_the_place_of_remit(broken):
    shutil.rmtree(broken / "tb" / "remit")
    write_log(broken / "tb" / "remit", "ntp", 10, 0.5)
    refused(broken, "tb/remit", "--objective remit")


def test_diverged_run(broken):
    shutil.rmtree(broken / "tb" / "ntp")
    with SummaryWriter(str(broken / "tb" / "ntp")) as writer:
        for tag in ("lm loss", "lm loss vs samples", "grad-norm", "tokens per second"):
            writer.add_scalar(tag, float("nan"), 1)
    refused(broken, "tb/ntp", "diverged")


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
