"""How often a run is tried again, and on which nodes not; the small files that say so, on a full disk too."""

import os

from megatron_remit.launch.history import History, Incident, pause_seconds, write_small


def incident(saved=0, node="", text="x", reached=3):
    return Incident("failed", saved, reached, None, node, text, "2026-01-01T00:00:00Z", "77-0-0")


def test_a_checkpoint_in_between_begins_the_count_anew(tmp_path):
    history = History(tmp_path)
    assert history.in_a_row(0) == 0
    for saved in (0, 0, 500, 500, 500):
        history.add(incident(saved))
    assert (history.in_a_row(500), history.in_a_row(0), history.in_a_row(1000)) == (3, 0, 0)


def test_the_record_outlives_the_job(tmp_path):
    History(tmp_path).add(incident(node="n1"))
    History(tmp_path).add(incident(node="n1"))
    assert History(tmp_path).in_a_row(0) == 2
    assert History(tmp_path).bad_nodes(2) == ["n1"]
    (tmp_path / "failures.json").write_text("{")
    assert History(tmp_path).in_a_row(0) == 0


def test_a_node_is_bad_after_so_many_failures(tmp_path):
    history = History(tmp_path)
    for node in ("n2", "", "n1", "", "n2"):
        history.add(incident(node=node))
    assert (history.bad_nodes(1), history.bad_nodes(2), history.bad_nodes(0)) == (["n1", "n2"], ["n2"], [])


def test_the_same_again(tmp_path):
    history = History(tmp_path)
    assert not history.knows("x", 3)
    history.add(incident())
    assert history.knows("x", 3) and not history.knows("x", 4) and not history.knows("y", 3)


def test_pauses_double():
    # Slurm takes up to SlurmdTimeout, 300 seconds by default, to see that a node is gone: the pauses outlast that.
    assert [pause_seconds(60, attempt) for attempt in (1, 2, 3)] == [60, 120, 240]


def test_a_small_file_is_written_over_where_no_new_one_can_be(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    assert write_small(path, "a long text") and path.read_text() == "a long text"

    def full(*_names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert write_small(path, "short") and path.read_text() == "short"
    assert [one.name for one in tmp_path.iterdir()] == ["status.json"]
    assert not write_small(tmp_path / "new.json", "x")
