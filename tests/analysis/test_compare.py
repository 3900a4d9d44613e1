"""The comparison of models and runs: its numbers against plain transformers, and its files."""

import base64
import html.parser
import json
import shutil
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import AutoModelForCausalLM

from megatron_remit.analysis import score
from megatron_remit.analysis.build import compare
from megatron_remit.analysis.curves import read_accuracies, read_run
from megatron_remit.analysis.heatmap import Heatmap, token_margins
from megatron_remit.analysis.inputs import read_texts
from megatron_remit.analysis.score import score_all
from megatron_remit.errors import UserError
from tests.analysis.inputs import TEXTS, request, rows
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def result(folder, tmp_path_factory):
    return compare(request(folder, tmp_path_factory.mktemp("out") / "new")).parent


def _scored(folder):
    models = {name: folder / name for name in ("base", "rl")}
    texts = read_texts([folder / "texts.jsonl"], "text", 10_000, folder / "base")
    return texts, score_all(models, texts, "rl", 32, "float32")


def test_the_pieces_of_the_texts_are_the_texts(folder):
    texts, _ = _scored(folder)
    assert len(texts) == 3, "the empty text is left out"
    whole = ["".join(texts.pieces[a:b]) for a, b in zip(texts.starts[:-1], texts.starts[1:], strict=True)]
    assert whole == [text for text in TEXTS if text]


def _agrees_with_transformers(rank, folder):
    texts, scores = _scored(folder)
    models = {name: AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float64) for name in scores.logp}
    for start, end in zip(texts.starts[:-1], texts.starts[1:], strict=True):
        for first in range(start, end, 32):
            stop = min(first + 32, end)
            before = texts.start_token if first == start else texts.ids_N[first - 1]
            inputs = torch.tensor([[before, *texts.ids_N[first : stop - 1]]])
            with torch.no_grad():
                logs = {name: model(input_ids=inputs).logits[0].log_softmax(-1) for name, model in models.items()}
            target = torch.from_numpy(texts.ids_N[first:stop])[:, None]
            for name, log in logs.items():
                np.testing.assert_allclose(scores.logp[name][first:stop], log.gather(1, target)[:, 0], atol=2e-5)
            kl = (logs["rl"].exp() * (logs["rl"] - logs["base"])).sum(-1)
            np.testing.assert_allclose(scores.kl["base"][first:stop], kl, atol=2e-5)
    assert "rl" not in scores.kl

    # Batches and chunks of one row and one token give the same.
    score.BATCH_TOKENS = score.CHUNK_LOGITS = 1
    small = score_all({name: folder / name for name in models}, texts, "rl", 32, "float32")
    np.testing.assert_allclose(small.logp["base"], scores.logp["base"], atol=1e-5)
    np.testing.assert_allclose(small.kl["base"], scores.kl["base"], atol=1e-5)


def test_log_probabilities_and_kl_are_those_of_transformers_in_float64(folder):
    """In a fresh process: with cpu.install(), which other tests call, transformers does not load rotary tables."""
    run_ranks(1, _agrees_with_transformers, folder)


def test_every_figure_is_there_as_png_and_csv_and_in_a_page_that_loads_nothing(result):
    names = {path.name for path in result.iterdir()}
    stems = {"logprobs", "kl", "runs", "accuracy", "heatmap-rl-base", "contrast-rl-sft"}
    assert {f"{stem}.{ending}" for stem in stems for ending in ("png", "csv")} <= names
    for stem in stems:
        content = (result / f"{stem}.png").read_bytes()
        assert content[:8] == base64.b64decode("iVBORw0KGgo=") and min(struct.unpack(">II", content[16:24])) > 150
    page = (result / "compare.html").read_text()
    tags = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(page)
    assert sum(tag == "svg" for tag, _ in tags) == 4
    assert not [tag for tag, attributes in tags if tag in ("script", "link", "img") or "src" in attributes]
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert ">&lt;</span>" in page and "<b>" not in page, "text from the corpus is escaped"


def test_an_input_is_not_overwritten_by_any_file_of_the_comparison(result, folder, tmp_path):
    names = [path.name for path in result.iterdir()]
    assert len(names) > 12
    for name in names:
        shutil.copy(folder / "accuracy.csv", tmp_path / name)
        asked = request(folder, tmp_path, accuracy=[str(tmp_path / name)])
        with pytest.raises(UserError, match=f"--accuracy .*{name}: --out {tmp_path} would overwrite it"):
            compare(asked)
        assert (tmp_path / name).read_bytes() == (folder / "accuracy.csv").read_bytes()


def test_the_csv_files_hold_what_the_figures_show(result):
    for name, columns in (("logprobs.csv", 3), ("kl.csv", 2)):
        shares = np.array(rows(result / name)[1:], dtype=float)[:, 2:]
        assert shares.shape[1] == columns
        np.testing.assert_allclose(shares.sum(axis=0), 100, rtol=1e-3)
    heat = rows(result / "heatmap-rl-base.csv")
    assert heat[0][2:4] == ["characters", "log p rl, nats"]
    first = [row for row in heat[1:] if row[0] == "1"]
    assert "".join(row[2] for row in first) == TEXTS[0]
    for row in heat[1:]:
        assert float(row[3]) - float(row[4]) == pytest.approx(float(row[5]), abs=2e-4)
    assert [row for row in rows(result / "runs.csv") if row[:3] == ["ntp", "loss", "1"]] == [["ntp", "loss", "1", "4"]]
    assert rows(result / "accuracy.csv")[1] == ["ntp", "1000", "10", "0.1"]


def test_tokens_are_ranked_by_their_mean_margin():
    pieces = [" So", "So", "the", " the", "rare", "x", "x"]
    found = token_margins(np.array([1.0, 3.0, -1.0, -1.0, 9.0, 0.0, 1.0]), pieces, least=2)
    assert [(one.token, one.count, one.mean) for one in found] == [("So", 2, 2.0), ("x", 2, 0.5), ("the", 2, -1.0)]
    assert found[0].stderr == pytest.approx(1.0), "std 1.414 over the root of 2"


def test_a_long_token_costs_its_own_length_once():
    pieces = ["=" * 20_000, *(str(number) for number in range(2000))]
    tracemalloc.start()
    token_margins(np.zeros(len(pieces)), pieces)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6, "2000 tokens, each with room for the longest, would be 160 MB"


def test_short_texts_share_a_batch_whatever_the_longest_text_is(folder, tmp_path, monkeypatch, forwards):
    lines = [json.dumps({"text": text}) for text in ("b" * 32, *["b"] * 32)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    texts = read_texts([tmp_path / "texts.jsonl"], "text", 1000, folder / "base")
    monkeypatch.setattr(score, "BATCH_TOKENS", 32)
    score_all({"base": folder / "base"}, texts, None, 32, "float32")
    assert forwards == [(1, 32), (32, 1)]


def test_colours_follow_the_paper():
    zero = np.zeros(4, dtype=np.float32)
    margins = np.array([2.0, 0.05, -0.05, -2.0], dtype=np.float32)
    one, two = Heatmap("a", "b", False, margins, zero), Heatmap("a", "b", True, margins, zero)
    assert one.colour(-2.0, 2.0) == "#ffffff" and one.colour(2.0, 2.0) == one.colour(9.0, 2.0) == "#ec5c48"
    assert two.colour(0.09, 2.0) == two.colour(-0.09, 2.0) == "#ffffff"
    assert two.colour(2.0, 2.0) == "#ec5c48" and two.colour(-2.0, 2.0) == "#5c94e2"
    for colour in ("ec5c48", "5c94e2"):
        linear = [
            value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4
            for value in (int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4))
        ]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert (luminance + 0.05) / 0.055 > 5, "dark text is legible on the full colour (WCAG contrast)"


def test_runs_alone_need_no_model(folder, tmp_path):
    out = compare(request(folder, tmp_path, model=[], text=[], teacher=None, heatmap=[], contrast=[])).parent
    assert (out / "runs.png").is_file() and not (out / "logprobs.png").exists()


def test_a_resumed_runs_event_files_of_one_folder_are_one_curve(tmp_path):
    for start, value in ((1, 1.0), (6, 2.0)):  # resumed from step 5, after step 10
        with SummaryWriter(str(tmp_path)) as writer:
            for step in range(start, start + 10):
                writer.add_scalar("lm loss", value, step)
    with SummaryWriter(str(tmp_path / "hyperparameters")) as writer:
        writer.add_scalar("hp_metric", 0.0, 0)
    steps, values = read_run("a", tmp_path).series["loss"]
    assert list(steps) == list(range(1, 16)) and list(values) == [1.0] * 5 + [2.0] * 10


def test_accuracies_come_from_csv_and_from_the_json_of_one_run(folder, tmp_path):
    tasks = [{"two": {"accuracy": a, "n": 9}, "three": {"accuracy": b, "n": 9}} for a, b in ((0.25, 0.5), (0.75, 1.0))]
    points = [{"step": k, "tokens": 10 * k, "seconds": 2.5 * k, "tasks": one} for k, one in enumerate(tasks, start=1)]
    (tmp_path / "kd.json").write_text(json.dumps({"points": points}))
    found = read_accuracies([str(folder / "accuracy.csv"), f"KD={tmp_path / 'kd.json'}"])
    assert list(found) == ["ntp", "remit", "KD"] and list(found["ntp"].tokens) == [1000, 2000, 3000]
    kd = found["KD"]
    assert (list(kd.tokens), list(kd.seconds), list(kd.accuracy)) == ([10, 20], [2.5, 5.0], [0.375, 0.875])
