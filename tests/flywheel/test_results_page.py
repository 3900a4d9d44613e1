"""The results page: every number from the cells, words from the intervals, and nothing for what was not run."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from intervals import verdict
from results import figures
from results.arms import in_order, named
from results.cells import Cells, gather, load
from results.page import NOT_RUN, Page
from results.tables import WHAT_RL_ADDS, both_rounds, change, pairs

from megatron_remit.analysis.figures import png
from tests.flywheel.cells import EFFECT, campaign, cell

PROGRAM = Path(__file__).parents[2] / "examples" / "flywheel" / "results_page.py"
METHODS = {"study": "methods", "stage": "mid", "errors": 0.3, "size": "1M"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(folder of the page, its text, its cells) of a campaign with cells of every study."""
    folder = tmp_path_factory.mktemp("results")
    cells = load(gather(campaign(folder / "run"), folder / "page.json", "abc to def"))
    return folder, Page(cells, folder / "page.md").text(), cells


def section(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def row(text, name):
    return next(line for line in text.splitlines() if line.startswith(f"| {name} |"))


def test_the_change_is_that_of_the_cells(built):
    _, _, cells = built
    found = change(cells, "remit", "ntp", **METHODS)
    by_hand = []
    for arm in ("remit", "ntp"):
        ends = [cell(arm, base, o, EFFECT[arm])["points"][-1]["nll"] for base in (1, 2, 3) for o in "abc"]
        by_hand.append(np.mean([one[skill] for one in ends for skill in ("two_step", "three_step")]))
    assert found.mean == pytest.approx(100 * (by_hand[0] / by_hand[1] - 1), abs=0.02)
    assert (found.bases, found.orders, found.problems) == (3, 9, 8)


def test_the_least_and_the_greatest_change_of_a_run_stand_next_to_the_interval(built):
    _, text, _ = built

    def end(arm, base, order):
        nll = cell(arm, base, order, EFFECT[arm])["points"][-1]["nll"]
        return np.mean([*nll["two_step"], *nll["three_step"]])

    percents = [100 * (end("rho1", b, o) / end("ntp", b, o) - 1) for b in (1, 2, 3) for o in "abc"]
    assert round(min(percents)) < round(max(percents)) < 0
    cells = row(section(text, "Methods side by side"), "RHO-1").split(" | ")
    assert cells[-1] == f"{min(percents):.0f} to {max(percents):.0f} |"


def test_the_hours_are_those_of_all_stages_of_all_gathered_runs(built, tmp_path):
    _, text, _ = built
    assert "| all |  | 2 |  | 0.2 |" in section(text, "How long it takes")
    out = tmp_path / "page.json"
    gather(campaign(tmp_path / "one"), out)
    other = campaign(tmp_path / "other")
    for name, seconds in {"base.b1.e30.5M": 6600, "methods.ntp.b2.e30.1M.o1": 180}.items():
        (other / "done" / name).write_text(json.dumps({"seconds": seconds}))
    gather(other, out, add=True)
    assert section(Page(load(out), tmp_path / "page.md").text(), "How long it takes").splitlines()[-5:] == [
        "| --- | --- | --- | --- | --- |",
        "| a base past its jump | 1M | 1 | 10.0 (10.0 to 10.0) | 0.2 |",
        "| a base past its jump | 5M | 1 | 110.0 (110.0 to 110.0) | 1.8 |",
        "| an arm | 1M | 2 | 2.0 (1.0 to 3.0) | 0.1 |",
        "| all |  | 4 |  | 2.1 |",
    ]


def test_what_rl_adds_is_told_only_of_arms_that_have_run(built):
    _, text, cells = built
    assert "References that differ in RL alone" not in text
    tuned = Cells([*cells.cells, *(one | {"arm": "remit_sft"} for one in cells.where(arm="ntp"))], cells.source)
    found = pairs(tuned, WHAT_RL_ADDS, **METHODS)
    told = verdict(change(cells, "remit", "ntp", **METHODS), "the other")
    assert [line.rsplit(" | ", 1)[0] for line in found.splitlines()[2:]] == [f"| ReMiT | ReMiT, SFT reference | {told}"]


def test_arms_with_a_reference_are_held_against_ntp_at_the_same_compute(built, tmp_path):
    _, text, cells = built
    assert "At the same compute" not in text
    more = [one | {"arm": "ntp_equal_compute"} for one in cells.where(arm="remit_before_rl", **METHODS)]
    page = Page(Cells([*cells.cells, *more], cells.source), tmp_path / "page.md").text()
    table = page.split("At the same compute")[1].split("\n\n")[1]
    found = change(cells, "remit", "remit_before_rl", **METHODS)
    assert table.splitlines()[2].startswith(f"| ReMiT | NTP on 4/3 of the tokens | {verdict(found, 'the other')} | ")


def test_the_message_says_what_the_reward_alone_brings_where_sft_saw_the_errors(built, tmp_path):
    _, text, cells = built
    assert "Where only RL's reward" not in text
    twins = {"remit_sft_errors": "ntp", "remit_rl_errors": "remit"}
    more = [one | {"arm": arm} for arm, twin in twins.items() for one in cells.where(arm=twin, **METHODS)]
    page = Page(Cells([*cells.cells, *more], cells.source), tmp_path / "page.md").text()
    found = change(cells, "remit", "ntp", **METHODS)
    told = f"ReMiT is {verdict(found, 'ReMiT with the SFT model that RL began with')}** (3 bases, 9 runs"
    assert told in " ".join(page.split("\n\n")[1].split())


def test_the_message_comes_first_and_follows_from_the_intervals(built):
    _, text, _ = built
    message = " ".join(text.split("\n\n")[1].split())
    assert "ReMiT is below NTP by 1" in message
    assert "control: reference before RL is not distinguishable from NTP (interval" in message
    assert "3 bases, 9 runs, 8 groups of ten problems" in " ".join(message.split())


def test_lines_end_where_those_of_the_docs_do(built):
    assert [line for line in built[1].splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_every_figure_of_the_page_is_there_and_small(built):
    folder, text, _ = built
    names = {part.split(")")[0] for part in text.split("](")[1:]}
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {name for name in names if name.endswith(".png")} and len(pictures) == 8
    assert all(path.stat().st_size < 150_000 for path in folder.glob("*.png"))


def test_no_figure_is_empty(built, tmp_path, monkeypatch):
    drawn = []

    def kept(figure, dpi):
        drawn.extend(figure.axes)
        return png(figure, dpi=dpi)

    monkeypatch.setattr(figures, "png", kept)
    Page(built[2], tmp_path / "page.md").text()
    assert len(drawn) >= 9 and all(any(len(line.get_xdata()) for line in ax.lines) for ax in drawn)
    closed = [line for ax in drawn for line in ax.lines if str(line.get_label()).startswith("closed form")]
    # 25 % of the results of the worst corpus are wrong, and at the bounds of the clip a wrong one counts two thirds.
    assert [line.get_ydata()[-1] for line in closed] == pytest.approx([0.25, 0.25 * 0.8 / (0.25 * 0.8 + 0.75 * 1.2)])
    assert all(len(line.get_xdata()) > 2 for line in closed)
    kl = next(ax for ax in drawn if ax.get_xlabel().startswith("KL"))
    assert [label.get_text() for label in kl.get_yticklabels()] == [named(arm).name for arm in in_order(set(EFFECT))]


def test_every_study_has_its_numbers(built):
    _, text, _ = built
    assert NOT_RUN not in text
    assert "commits abc to def: python" in " ".join(text.split())
    assert "| 9 |" in row(section(text, "Methods side by side"), "RHO-1")
    for name in ("The RL reference", "RL behind SFT on errors"):
        assert f"{name} is below the SFT model that RL began with by" in " ".join(text.split())
    assert row(text, "RL behind SFT on errors").endswith("| 0.50 to 0.62 |")
    assert "below NTP by" in section(text, "What lasts through SFT and GRPO")
    assert "Without errors ReMiT is not distinguishable from NTP" in section(text, "Effect against the share of errors")
    assert "| result wrong | 90 | 0.850 |" in section(text, "Weight by kind of token, against the truth")
    assert "without the variation of bases" not in text.split("\n\n")[1]


def test_the_second_round_stands_next_to_the_first_and_is_compared_with_it(built):
    _, text, cells = built
    found = section(text, "The flywheel: a second round")
    both = both_rounds(cells)
    wanted = METHODS | {"study": "flywheel"}
    second = "second round: ReMiT, RL model of"
    assert f"| {verdict(change(both, 'second_remit', 'ntp', **wanted), 'NTP')} |" in row(found, f"{second} ReMiT")
    assert "| 9 |" in row(found, "NTP") and "| 3 |" in row(found, f"{second} NTP")
    words = verdict(change(both, "second_remit", "remit", **wanted), "the other")
    assert words.startswith("below") and f"| {second} ReMiT | ReMiT | {words} |" in found


def test_new_runs_are_inside_or_outside_the_intervals_of_the_table(built):
    _, text, _ = built
    rows = section(text, "A tenth of the runs once more, in a new order of the data")
    inside = {name: row(rows, name).split("|")[-2].strip() for name in ("NTP", "ReMiT", "control: permuted weights")}
    assert inside == {"NTP": "yes", "ReMiT": "yes", "control: permuted weights": "no"}
    assert row(rows, "ReMiT").split("|")[2].strip() == "3"
    assert -16 < float(row(rows, "ReMiT").split("|")[3].removesuffix(" % ")) < -14


def test_tokens_to_the_end_of_ntp_are_interpolated(built):
    _, text, _ = built
    rows = section(text, "Tokens and seconds to NTP's end")
    assert row(rows, "NTP").split("|")[2].strip().startswith("600,000")
    # RHO-1 falls from 3 to 0.6 and passes NTP's 1.0 between the last two points, at 5/6 of the way.
    assert int(row(rows, "RHO-1").split("|")[2].split("(")[0].replace(",", "")) == pytest.approx(500_000, rel=0.03)


def test_a_run_that_was_stopped_for_a_while_moves_no_second(tmp_path):
    run = campaign(tmp_path / "run", everything=False)
    one = next(path for path in (run / "eval").glob("*.json") if json.loads(path.read_text())["arm"] == "rho1")
    pages = []
    for factor in (1, 20):
        cell = json.loads(one.read_text())
        cell["points"] = [point | {"seconds": factor * point["seconds"]} for point in cell["points"]]
        one.write_text(json.dumps(cell))
        pages.append(Page(load(gather(run, tmp_path / "c.json")), tmp_path / "p.md").text())
    rows = [row(section(text, "Tokens and seconds to NTP's end"), "RHO-1") for text in pages]
    assert rows[0] == rows[1] and "not reached" not in rows[0].split("|")[3].split("(")[0]


def test_a_campaign_that_is_not_finished_says_what_it_lacks(tmp_path):
    run = campaign(tmp_path / "run", everything=False)
    for path in sorted((run / "eval").glob("*.json"))[-5:]:
        path.unlink()
    text = Page(load(gather(run, tmp_path / "c.json")), tmp_path / "p.md").text()
    assert NOT_RUN in section(text, "Effect against size") and NOT_RUN in section(text, "One thread and two")
    assert "| 4 |" in row(section(text, "Methods side by side"), "RHO-1")
    assert "Appendix" in text


def test_sizes_stand_in_their_order(built, tmp_path):
    cells = built[2]
    more = [one | {"size": "20M"} for one in cells.where(study="size", size="5M")]
    text = Page(Cells([*cells.cells, *more], cells.source), tmp_path / "page.md").text()
    rows = [line for line in section(text, "Effect against size").splitlines() if "M | NTP |" in line]
    assert [line.split(" | ")[0] for line in rows] == ["| 1M", "| 5M", "| 20M"]


def test_one_size_is_no_study_of_sizes(built, tmp_path):
    cells = built[2]
    alone = Cells([one for one in cells.cells if one["size"] == "1M"], cells.source)
    assert NOT_RUN in section(Page(alone, tmp_path / "page.md").text(), "Effect against size")


@pytest.mark.parametrize(
    ("measured_alike", "told"), [(True, "do."), (False, "do; those of bases 2 stood behind nothing,")]
)
def test_the_page_says_which_problems_stood_behind_nothing(measured_alike, told, tmp_path):
    behind = {"settings": {"behind": "end of text"}}
    (tmp_path / "eval").mkdir()
    for base, changed in ((1, behind), (2, behind if measured_alike else {})):
        for arm in ("ntp", "remit"):
            content = cell(arm, base, "a", EFFECT[arm], **changed)
            (tmp_path / f"eval/{arm}.{base}.json").write_text(json.dumps(content))
    text = Page(load(gather(tmp_path, tmp_path / "cells.json")), tmp_path / "page.md").text()
    assert f"behind an end of text, as most documents of the corpora {told}" in " ".join(text.split())


def test_the_page_comes_from_the_committed_file_alone(built, tmp_path, monkeypatch):
    folder, text, _ = built
    out = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["x", "--json", str(folder / "page.json"), "--out", str(out)])
    runpy.run_path(str(PROGRAM), run_name="__main__")
    assert out.read_text() == text


def test_a_run_that_ends_on_the_way_leaves_the_old_page_and_its_figures(built, tmp_path, monkeypatch):
    folder, _, _ = built
    old = {"page.md": b"old", "page-methods.png": b"old"}
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)

    def fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("results.figures.errors", fails)
    monkeypatch.setattr(sys, "argv", ["x", "--json", str(folder / "page.json"), "--out", str(tmp_path / "page.md")])
    with pytest.raises(KeyboardInterrupt):
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old
