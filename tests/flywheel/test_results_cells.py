"""The cells of run folders become one file that is committed: what is added to it, and what is refused."""

import json

import numpy as np
import pytest
from results.cells import gather, groups, load
from results.page import Page

from megatron_remit.errors import UserError
from tests.flywheel.cells import campaign, cell


def test_groups_keep_the_mean_and_are_of_about_ten():
    values = np.arange(64.0)
    assert len(groups(values)) == 6
    assert np.mean(groups(np.arange(40.0))) == 19.5
    assert groups(np.array([1.0, 3.0])) == [2.0]


def test_runs_of_other_bases_are_added_to_the_file_with_what_made_them(tmp_path):
    first, second = (campaign(tmp_path / name, everything=name == "a") for name in "ab")
    for path in (second / "eval").glob("*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"base": content["base"] + 3}))
    gather(first, tmp_path / "c.json", "abc to def")
    alone = load(tmp_path / "c.json")
    cells = load(gather(second, tmp_path / "c.json", "fed", add=True))
    assert len(cells.cells) == len(alone.cells) + len(list((second / "eval").glob("*.json")))
    assert all(one in cells.cells for one in alone.cells)
    assert cells.source["token_kinds"] == alone.source["token_kinds"]
    text = " ".join(Page(cells, tmp_path / "p.md").text().split())
    assert "6 bases, 18 runs" in text and "commits abc to def" in text and "commits fed:" in text
    again = load(gather(second, tmp_path / "c.json", "fed", add=True))
    assert again.cells == cells.cells and len(again.source["earlier"]) == 1


def test_a_cell_with_other_numbers_is_not_added_over_the_old_one(tmp_path):
    run = campaign(tmp_path / "a", everything=False)
    gather(run, tmp_path / "c.json")
    before = (tmp_path / "c.json").read_bytes()
    (run / "eval" / "000.json").write_text(json.dumps(cell("ntp", 1, "a", 1.5)))
    with pytest.raises(UserError, match=r"arm ntp, base 1.* with other numbers"):
        gather(run, tmp_path / "c.json", add=True)
    assert (tmp_path / "c.json").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ('{"study": "methods"}', "'arm'"),
        (json.dumps(cell("ntp", 1, "a", 1) | {"points": []}), "no point"),
    ],
)
def test_a_broken_cell_is_named_and_nothing_is_written(tmp_path, content, words):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "bad.json").write_text(content)
    with pytest.raises(UserError, match=r"bad\.json") as caught:
        gather(tmp_path, tmp_path / "out.json")
    assert words in str(caught.value) and not (tmp_path / "out.json").exists()


def test_a_broken_record_of_a_stage_is_named_and_nothing_is_written(tmp_path):
    run = campaign(tmp_path / "run", everything=False)
    (run / "done").mkdir()
    (run / "done/base.b1.e30.1M").write_text("{}")
    with pytest.raises(UserError, match=r"base\.b1\.e30\.1M: found {}, expected the seconds of a stage"):
        gather(run, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_folder_without_cells_and_another_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="no cell"):
        gather(tmp_path, tmp_path / "out.json")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UserError, match="format None"):
        load(tmp_path / "other.json")
