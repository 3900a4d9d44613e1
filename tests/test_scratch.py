"""What killed processes leave next to a target is removed by the next one, and what they had moved aside comes back."""

import os
import subprocess
import sys
import time

import pytest

from megatron_remit import scratch
from megatron_remit.data.corpus_files import check_paths


@pytest.fixture(scope="module")
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def _of(process, path):
    """``path`` with another owner."""
    return path.with_name(path.name.replace(f"-{os.getpid()}-", f"-{process}-"))


def test_what_a_dead_process_was_writing_is_removed_and_a_living_ones_stays(tmp_path, dead):
    target = tmp_path / "out"
    mine = scratch.being_written(target)
    mine.mkdir()
    (_of(dead, mine) / "deeper").mkdir(parents=True)
    _of(dead, scratch.being_written(tmp_path / "outer")).mkdir()  # of another target
    scratch.clear(target)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {mine.name, _of(dead, scratch.being_written(tmp_path / "outer")).name}


def test_what_it_had_moved_aside_comes_back_if_nothing_took_its_place(tmp_path, dead):
    target = tmp_path / "out"
    old = _of(dead, scratch.moved_aside(target))
    old.write_text("old")
    scratch.clear(target)
    assert target.read_text() == "old"
    old.write_text("older")
    scratch.clear(target)
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["out.tmp-1234-00000000", "out.tmp-1234"])
def test_what_another_machine_writes_is_left_alone_for_a_week(tmp_path, name, dead):
    """A process number of another machine or container says nothing here; nor does a name of an earlier version."""
    other = tmp_path / name.replace("1234", str(dead))
    other.mkdir()
    (other / "file").write_text("")
    scratch.clear(tmp_path / "out")
    assert other.is_dir()
    long_ago = time.time() - 8 * 24 * 3600
    os.utime(other, (long_ago, long_ago))
    scratch.clear(tmp_path / "out")
    assert other.is_dir(), "a file in it is new"
    os.utime(other / "file", (long_ago, long_ago))
    scratch.clear(tmp_path / "out")
    assert not other.exists()


STEPS = ["idx", "json", "bin"]  # the order in which an old corpus is moved aside; the new one comes in the opposite one


@pytest.mark.parametrize("old_manifest", [True, False])
@pytest.mark.parametrize("aside", range(4))
@pytest.mark.parametrize("placed", range(4))
def test_a_corpus_whose_replacement_was_killed_is_whole_again(tmp_path, dead, aside, placed, old_manifest):
    if placed and aside < 3:
        pytest.skip("the new files come after the old ones went")
    prefix, index = tmp_path / "out", "MMIDIDX\x00\x00 of the {} corpus"
    content = {"idx": index, "json": '{{"tokenizer_fingerprint": "{}"}}', "bin": "{}"}
    olds = [suffix for suffix in STEPS if old_manifest or suffix != "json"]
    for suffix in olds:
        (tmp_path / f"out.{suffix}").write_text(content[suffix].format("old"))
    for suffix in STEPS:
        _of(dead, scratch.being_written(tmp_path / f"out.{suffix}")).write_text(content[suffix].format("new"))
    for suffix in [suffix for suffix in STEPS[:aside] if suffix in olds]:
        target = tmp_path / f"out.{suffix}"
        target.rename(_of(dead, scratch.moved_aside(target)))
    for suffix in STEPS[::-1][:placed]:
        target = tmp_path / f"out.{suffix}"
        _of(dead, scratch.being_written(target)).rename(target)
    (tmp_path / "text.jsonl").write_text("")
    check_paths([tmp_path / "text.jsonl"], prefix, overwrite=True)
    state, kept = ("new", STEPS) if placed == 3 else ("old", olds)
    found = {path.name: path.read_text() for path in tmp_path.iterdir() if path.name != "text.jsonl"}
    assert found == {f"out.{suffix}": content[suffix].format(state) for suffix in kept}
