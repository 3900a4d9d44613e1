"""The comparison of models: its numbers against plain transformers, its files, and what it refuses."""

import base64
import csv
import html.parser
import json
import struct

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_remit.compare import score
from megatron_remit.compare.build import Request, compare
from megatron_remit.compare.heatmap import Heatmap
from megatron_remit.compare.inputs import read_texts, shared_tokenizer
from megatron_remit.compare.score import score_all
from megatron_remit.compare.tokens import token_margins
from megatron_remit.errors import UserError
from tests.hf_models import make_olmo2
from tests.ranks import run_ranks

TEXTS = ["So the sum is 3.\nTherefore <b>&amp;</b> $x$ follows.", "", "ba de " * 40, "Therefore: \tdone"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    for name, seed in (("base", 1), ("rl", 2), ("sft", 3)):
        make_olmo2(folder / name, seed=seed)
    make_olmo2(folder / "other", seed=4, vocab_size=600)
    make_olmo2(folder / "wider", seed=5, vocab_size=600, tokenizer=False)
    AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / "wider")
    lines = [json.dumps({"text": text, "id": number}) for number, text in enumerate(TEXTS)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    for name, level in (("ntp", 3.0), ("remit", 2.0)):
        with SummaryWriter(str(folder / "tb" / name)) as writer:
            for step in range(1, 101):
                writer.add_scalar("lm loss", level + 1 / step, step)
                writer.add_scalar("grad-norm", 10 ** (step / 50), step)
    rows = [["run", "tokens", "seconds", "accuracy"]]
    rows += [[run, 1000 * k, 10 * k, k / 10] for run in ("ntp", "remit") for k in (3, 1, 2)]
    (folder / "accuracy.csv").write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    return folder


def request(folder, out, **overrides):
    return Request(**{
        "out": out, "model": [f"{name}={folder / name}" for name in ("base", "rl", "sft")],
        "text": [folder / "texts.jsonl"], "teacher": "rl", "heatmap": ["rl:base"], "contrast": ["rl:sft"],
        "seq_length": 32, "run": [f"{name}={folder / 'tb' / name}" for name in ("ntp", "remit")],
        "accuracy": folder / "accuracy.csv",
    } | overrides)


@pytest.fixture(scope="module")
def result(folder, tmp_path_factory):
    return compare(request(folder, tmp_path_factory.mktemp("out") / "new")).parent


def _scored(folder):
    models = {name: folder / name for name in ("base", "rl")}
    tokenizer = shared_tokenizer(models)
    texts = read_texts([folder / "texts.jsonl"], "text", 10_000, tokenizer, folder / "base")
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
    """In a fresh process: with host.install(), which other tests call, transformers does not load rotary tables."""
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


def test_the_csv_files_hold_what_the_figures_show(result):
    def rows(name):
        with (result / name).open(newline="") as file:
            return list(csv.reader(file))

    for name, columns in (("logprobs.csv", 3), ("kl.csv", 2)):
        shares = np.array(rows(name)[1:], dtype=float)[:, 2:]
        assert shares.shape[1] == columns
        np.testing.assert_allclose(shares.sum(axis=0), 100, rtol=1e-3)
    heat = rows("heatmap-rl-base.csv")
    assert heat[0][2:4] == ["characters", "log p rl, nats"]
    first = [row for row in heat[1:] if row[0] == "1"]
    assert "".join(row[2] for row in first) == TEXTS[0]
    for row in heat[1:]:
        assert float(row[3]) - float(row[4]) == pytest.approx(float(row[5]), abs=2e-4)
    assert [row for row in rows("runs.csv") if row[:3] == ["ntp", "loss", "1"]] == [["ntp", "loss", "1", "4"]]
    assert rows("accuracy.csv")[1] == ["ntp", "1000", "10", "0.1"]


def test_tokens_are_ranked_by_their_mean_margin():
    pieces = [" So", "So", "the", " the", "rare", "x", "x"]
    found = token_margins(np.array([1.0, 3.0, -1.0, -1.0, 9.0, 0.0, 1.0]), pieces, least=2)
    assert [(one.token, one.count, one.mean) for one in found] == [("So", 2, 2.0), ("x", 2, 0.5), ("the", 2, -1.0)]
    assert found[0].stderr == pytest.approx(1.0), "std 1.414 over the root of 2"


def test_colours_follow_the_paper():
    zero = np.zeros(4, dtype=np.float32)
    margins = np.array([2.0, 0.05, -0.05, -2.0], dtype=np.float32)
    one, two = Heatmap("a", "b", False, margins, zero), Heatmap("a", "b", True, margins, zero)
    assert one.colour(-2.0, 2.0) == "#ffffff" and one.colour(2.0, 2.0) == one.colour(9.0, 2.0) == "#ec5c48"
    assert two.colour(0.09, 2.0) == two.colour(-0.09, 2.0) == "#ffffff"
    assert two.colour(2.0, 2.0) == "#ec5c48" and two.colour(-2.0, 2.0) == "#5c94e2"
    for colour in ("ec5c48", "5c94e2"):
        linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4
                  for value in (int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4))]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert (luminance + 0.05) / 0.055 > 5, "dark text is legible on the full colour (WCAG contrast)"


def test_runs_alone_need_no_model(folder, tmp_path):
    out = compare(request(folder, tmp_path, model=[], text=[], teacher=None, heatmap=[], contrast=[])).parent
    assert (out / "runs.png").is_file() and not (out / "logprobs.png").exists()


@pytest.mark.parametrize(("overrides", "message"), [
    ({"model": [], "text": [], "run": [], "accuracy": None}, "nothing to compare"),
    ({"text": []}, "--model and --text go together"),
    ({"model": ["base"]}, "expected NAME=DIR"),
    ({"model": ["base={folder}/base", "base={folder}/rl"]}, "'base' is given twice"),
    ({"model": ["base={folder}/nowhere"]}, "nowhere is no folder"),
    ({"model": ["a={folder}/tb"], "teacher": None, "heatmap": [], "contrast": []}, "does not load"),
    ({"model": ["rl={folder}/rl"], "heatmap": [], "contrast": []}, "give a second --model"),
    ({"model": ["rl={folder}/rl", "o={folder}/other"], "heatmap": [], "contrast": []}, "its tokenizer is not the one"),
    ({"model": ["rl={folder}/rl", "w={folder}/wider"], "heatmap": [], "contrast": []}, "600 rows, the teacher's 515"),
    ({"teacher": "rm"}, "no model 'rm'; --model names base, rl, sft"),
    ({"heatmap": ["rl:bose"]}, "no model 'bose'"),
    ({"contrast": ["rl"]}, "expected A:B"),
    ({"text": ["{folder}/none.jsonl"]}, "none.jsonl: no such file"),
    ({"text": ["{folder}/empty.jsonl"]}, "no text with a token in it"),
    ({"json_key": "body"}, "texts.jsonl:1: no key 'body'"),
    ({"max_tokens": 0}, "--max-tokens 0"),
    ({"seq_length": 0}, "--seq-length 0"),
    ({"seq_length": 65}, "built for sequences of at most 64 tokens"),
    ({"run": ["a={folder}/rl"]}, "no TensorBoard event file"),
    ({"accuracy": "{folder}/texts.jsonl"}, "no column 'run'"),
    ({"accuracy": "{folder}/wrong.csv"}, "wrong.csv:3: expected"),
    ({"out": "{folder}/texts.jsonl"}, "it is a file; name a folder"),
])
def test_bad_input_is_named_and_nothing_is_written(overrides, message, folder, tmp_path):
    (folder / "empty.jsonl").write_text('{"text": ""}\n\n')
    (folder / "wrong.csv").write_text("run,tokens,seconds,accuracy\na,1,1,0.5\na,2,2,50\n")

    def filled(value):
        if isinstance(value, list):
            return [filled(one) for one in value]
        return value.replace("{folder}", str(folder)) if isinstance(value, str) else value

    values = {name: filled(value) for name, value in overrides.items()}
    for name in ("text", "accuracy", "out"):
        if name in values and values[name] is not None:
            paths = values[name]
            values[name] = [type(tmp_path)(one) for one in paths] if isinstance(paths, list) else type(tmp_path)(paths)
    with pytest.raises(UserError, match=message):
        compare(request(folder, **{"out": tmp_path / "out"} | values))
    assert not (tmp_path / "out").exists()
