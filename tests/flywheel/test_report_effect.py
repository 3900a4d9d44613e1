"""The report of a run with several runs of each arm: the effect, the checks and the kinds are those of its files."""

import json
import re

import pytest
from intervals import verdict
from report.build import build_report
from report.effect import Effect

from megatron_remit.errors import UserError
from tests.flywheel.cells import cell


def test_the_page_has_the_effect_the_checks_and_the_kinds_of_its_run(broken, capsys):
    html = build_report(broken).read_text(encoding="utf-8")
    effect = Effect.of(broken)
    for row in effect.rows():
        assert all(f">{value}</td>" in html for value in row[1:])
    words = verdict(effect.change("remit"), "NTP")
    assert words.startswith("below NTP by 1") and f"ReMiT is {words}." in html
    assert "Control: reference before RL is not distinguishable from NTP" in html
    assert "without the variation of bases" in html, "one base: the interval does not hold other bases"
    assert "<td>equal</td><td>weights of one give NTP <small>losses of 5 steps</small>" in html
    assert "<td>result wrong</td><td>0.831</td>" in html
    assert "Training curves" not in html and "One run of each arm" not in html
    assert f"<b>{effect.conclusion()}</b>" in html and "and over the control" in effect.conclusion()
    # The terminal ends with the same table, the verdict, and where the page is.
    told = capsys.readouterr().out
    assert f"ReMiT is {words}." in told and effect.conclusion() in told
    assert told.rstrip().endswith(f"file://{broken / 'report.html'}")


def effect_of(folder, **effects):
    """Of a run folder with these arms in three orders; 1 is what NTP's end costs."""
    (folder / "eval").mkdir()
    for arm, end in effects.items():
        for order in "abc":
            (folder / f"eval/{arm}.{order}.json").write_text(json.dumps(cell(arm, 1, order, end)))
    return Effect.of(folder)


@pytest.mark.parametrize(
    ("remit", "control", "words"),
    [(0.8, 1.0, "gains over NTP, and over the control"), (0.8, 0.8, "neither SFT nor RL is not shown"),
     (1.0, 1.0, "no gain"), (1.2, 1.4, "no gain")],
)  # fmt: skip
def test_the_verdict_follows_from_both_intervals(tmp_path, remit, control, words):
    assert words in effect_of(tmp_path, ntp=1.0, remit=remit, remit_before_rl=control).conclusion()


def test_there_is_no_verdict_without_the_control(tmp_path):
    assert effect_of(tmp_path, ntp=1.0, remit=0.8).conclusion() == ""


def test_tokens_can_be_read_without_a_mouse(run_dir):
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    texts, lists = html.count('<div class="text">'), re.findall(r"<details>.*?</details>", html, re.DOTALL)
    assert texts == len(lists) > 0
    assert sum(one.count("<li>") for one in lists) == html.count("data-tip=")
    assert html.count('tabindex="-1"') == html.count("data-tip=")


def test_the_page_is_dark_where_the_reader_asks_for_it_and_its_figures_too(run_dir):
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in html
    figures = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "currentColor" in figures
    assert not re.search(r"(fill|stroke): (#ffffff|#222222|#444444|white|black)\b", figures)


@pytest.mark.parametrize(
    ("name", "content"),
    [("checks/ones.json", "{"), ("checks/ones.json", '{"claim": "x"}'), ("token_kinds.json", "[]"),
     ("eval/methods.ntp.1a.json", '{"study": "methods"}')],
)  # fmt: skip
def test_a_broken_file_is_named_and_no_page_is_left(broken, name, content):
    (broken / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(name.rsplit("/", maxsplit=1)[-1])):
        build_report(broken)
    assert not (broken / "report.html").exists() and not (broken / "results.json").exists()
