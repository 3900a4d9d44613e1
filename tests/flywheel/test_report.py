"""The report of a run: complete, self-contained, and equal to what went in."""

import importlib.metadata
import json
import math
import re
import runpy
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from report.build import build_report
from report.effect import Effect
from report.figures import clip_threshold
from report.heldout import spread, weight_share
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.ranks import ROOT

PROGRAM = ROOT / "examples" / "flywheel" / "show.py"


class Tags(HTMLParser):
    """Collects every tag, and checks that each one that is opened is closed."""

    VOID = frozenset(("meta", "br", "link", "img", "hr", "input"))

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html(run_dir):
    return (run_dir / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tags(html):
    parser = Tags()
    parser.feed(html)
    assert parser.open == []
    return parser.tags


@pytest.fixture(scope="module")
def results(run_dir):
    return json.loads((run_dir / "results.json").read_text())


def heatmap_tokens(tags):
    return [attrs for _, attrs in tags if "data-margin" in attrs]


def test_page_loads_nothing(html, tags):
    # The only links allowed are XML namespace names, which no browser fetches.
    for tag, attrs in tags:
        for name, value in attrs.items():
            if name.startswith("xmlns"):
                continue
            assert "://" not in (value or ""), (tag, name, value)
            assert name not in ("src", "srcset", "data", "action", "poster"), (tag, name)
            if name in ("href", "xlink:href"):
                assert value.startswith("#"), (tag, value)
            assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", value or ""))
    assert {tag for tag, _ in tags}.isdisjoint(("link", "script", "iframe", "img", "object", "embed", "base"))
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL).group(1)
    assert "url(" not in style and "@import" not in style


def test_page_has_all_figures_and_no_id_twice(tags):
    assert [attrs["aria-label"] for tag, attrs in tags if tag == "svg"] == ["effect", "delta"]
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_references_inside_the_figures_resolve(html, tags):
    ids = {attrs["id"] for _, attrs in tags if "id" in attrs}
    used = set(re.findall(r"url\(#([^)]*)\)", html)) | set(re.findall(r'xlink:href="#([^"]*)"', html))
    assert used and used <= ids


def test_results_hold_the_intervals_that_the_page_tells(run_dir, results):
    effect = Effect.of(run_dir)
    assert results["verdict"] == effect.conclusion() and results["verdicts"] == effect.verdicts()
    assert results["basis"] == effect.basis()
    remit, change = results["arms"]["remit"], effect.change("remit")
    assert remit["runs"] == 3 and remit["percent_against_ntp"] == {
        "mean": change.mean, "low": change.low, "high": change.high,
    }  # fmt: skip
    assert results["arms"]["ntp"]["percent_against_ntp"] is None
    assert results["timings_seconds"] == json.loads((run_dir / "timings.json").read_text())
    assert results["settings"] == json.loads((run_dir / "settings.json").read_text())


def test_results_name_versions_and_machine(results):
    versions = results["versions"]
    for package in ("torch", "megatron-core", "transformers", "trl", "lm_eval"):
        assert package in versions
    assert versions["torch"] == importlib.metadata.version("torch")
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "git commit" in versions
    assert results["machine"]["cores"] >= 1 and results["machine"]["device"]


def reference_logprobs(folder, text):
    """Independent: one text at a time, log_softmax in float64 over the whole vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).double().eval()
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        logp = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
    return logp.gather(1, ids[0, 1:, None])[:, 0].numpy()


def test_heatmap_shows_the_margins_of_both_models(run_dir, tags):
    rows = [json.loads(line) for line in (run_dir / "data" / "heldout.jsonl").read_text().splitlines()]
    shown = [row["text"] for row in rows if row["task"] == "two_step"][:4]
    shown += [row["text"] for row in rows if row["task"] == "three_step"][:4]
    base = np.concatenate([reference_logprobs(run_dir / "hf" / "base", text) for text in shown])
    rl = np.concatenate([reference_logprobs(run_dir / "hf" / "rl_reference", text) for text in shown])
    tokens = heatmap_tokens(tags)
    margins = np.array([float(token["data-margin"]) for token in tokens])
    np.testing.assert_allclose(margins, rl - base, atol=2e-4)
    for token, lr, lb in zip(tokens, rl, base, strict=True):
        lines = token["data-tip"].replace("\N{MINUS SIGN}", "-").split("\n")
        tip = [float(re.search(r"[-+]?\d+\.\d+", line).group()) for line in lines]
        assert tip[0] == pytest.approx(lr, abs=2e-3) and tip[1] == pytest.approx(lb, abs=2e-3)
        assert tip[2] == pytest.approx(lr - lb, abs=2e-3)


def test_heatmap_weights_are_equation_5(run_dir, tags):
    text = json.loads((run_dir / "data" / "heldout.jsonl").read_text().splitlines()[0])["text"]
    hf = run_dir / "hf"
    delta = reference_logprobs(hf / "rl_reference", text) - reference_logprobs(hf / "base", text)
    expected = np.clip(2 / (1 + np.exp(-(delta - delta.mean()))), 0.8, 1.2)
    found = [float(token["data-tip"].split()[-1]) for token in heatmap_tokens(tags)[: len(delta)]]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_heatmap_tokens_spell_the_text(run_dir, html):
    text = json.loads((run_dir / "data" / "heldout.jsonl").read_text().splitlines()[0])["text"]
    block = re.search(r'<div class="text">.*?<p>(.*?)</p><details>', html, re.DOTALL).group(1)
    assert re.sub(r"<[^>]*>", "", block).replace("↵", "") == text


def test_scored_texts_are_spread_over_the_file():
    rows = [{"text": str(i)} for i in range(10)]
    assert [row["text"] for row in spread(rows, 5)] == ["0", "2", "4", "6", "8"]
    assert spread(rows, 99) == rows


def test_texts_with_markup_and_other_scripts_are_escaped(broken):
    row = {"prompt": "", "answer": "", "text": '<b onclick="x">&amp; 5 € für 東京</b>', "task": "<i>"}
    (broken / "data" / "heldout.jsonl").write_text(json.dumps(row) + "\n")
    html = build_report(broken).read_text(encoding="utf-8")
    assert "<b onclick" not in html and "<i>" not in html
    block = re.search(r'<div class="text">.*?<p>(.*?)</p><details>', html, re.DOTALL).group(1)
    assert "東" in block and "€" in block


def test_clipping_is_optional(broken):
    settings = json.loads((broken / "settings.json").read_text())
    (broken / "settings.json").write_text(json.dumps(settings | {"epsilon": None}))
    build_report(broken)
    assert "clip_threshold" not in json.loads((broken / "results.json").read_text())["delta"]


def test_clip_threshold_is_where_the_weight_meets_the_bound():
    for epsilon in (0.05, 0.2, 0.9):
        x = clip_threshold(epsilon)
        assert 2 / (1 + math.exp(-x)) == pytest.approx(1 + epsilon)
        assert 2 / (1 + math.exp(x)) == pytest.approx(1 - epsilon)
    assert clip_threshold(0.2) == pytest.approx(math.log(1.2 / 0.8))


def test_colour_is_the_weight_and_full_at_the_bounds_of_the_clip(tags):
    assert weight_share(1.0, 0.2) == 0.0
    assert weight_share(1.2, 0.2) == pytest.approx(1.0) and weight_share(0.8, 0.2) == pytest.approx(-1.0)
    assert weight_share(1.1, 0.2) == pytest.approx(0.5)
    assert weight_share(2.0, None) == 1.0
    for token in heatmap_tokens(tags):
        weight = float(token["data-tip"].split()[-1])
        full = float(token["style"].removeprefix("--c:").removesuffix("%"))
        assert full == pytest.approx(100 * abs(weight_share(weight, 0.2)), abs=1)
        assert "up" in token["class"].split() or weight <= 1
        assert "down" in token["class"].split() or weight >= 1
    assert any(token["style"] == "--c:100%" for token in heatmap_tokens(tags)), "tokens at the clip's bounds"


def command(monkeypatch, *arguments):
    """Run ``show.py report`` as a program, in this process: its imports take longer than its work."""
    monkeypatch.setattr(sys, "argv", ["show.py", "report", *map(str, arguments)])
    runpy.run_path(str(PROGRAM), run_name="__main__")


def test_command_line_gives_the_same_report_where_it_is_told(run_dir, html, tmp_path, monkeypatch, capsys):
    out = tmp_path / "again.html"
    command(monkeypatch, "--run-dir", run_dir, "--out", out, "--max-texts", 12)
    assert "again.html" in capsys.readouterr().out
    clock = re.compile(r'<p class="meta">[^·]*·')
    assert clock.sub("", out.read_text(encoding="utf-8")) == clock.sub("", html)
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]  # no temporary file stays


def test_command_line_ends_with_one_line_for_a_wrong_folder(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, "--run-dir", tmp_path / "nowhere")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "nowhere" in error and "Traceback" not in error
