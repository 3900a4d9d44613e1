"""The file of a selection's scores and the note beside it: what a stopped run left, and what is somebody else's."""

import dataclasses
import resource

import numpy
import pytest

from megatron_remit import cpu
from megatron_remit.errors import UserError
from megatron_remit.programs import select_samples as command
from megatron_remit.selection.documents import Position, _create, _note, _start, position

cpu.install()


def test_progress_of_another_selection_is_refused(tmp_path):
    scores = tmp_path / "kept.scores.npy"
    scores.write_bytes(b"")
    note = tmp_path / "kept.scores.progress.json"
    _note(scores, Position("one", 3, 2, 1, 0.5))
    assert dataclasses.asdict(position(scores, "one")) == {"job": "one", "row": 3, "place": 2, "left": 1, "total": 0.5}
    with pytest.raises(UserError, match="of another selection"):
        position(scores, "two")
    note.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        position(scores, "one")


def test_scores_that_cannot_be_created_are_not_taken_for_done(tmp_path):
    scores = tmp_path / "kept.scores.npy"
    _note(scores, Position("one", row=9))  # of a run whose scores were removed
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(UserError, match=r"kept\.scores\.npy: cannot be written .*free space"):
            _create(scores, 1 << 20, Position("one"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert position(scores, "one") is None
    assert {path.name for path in tmp_path.iterdir()} == {"kept.scores.progress.json"}


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".scores.npy"])
def test_somebody_elses_files_are_refused_and_stay(tmp_path, suffix):
    out, scores = tmp_path / "kept", tmp_path / "kept.scores.npy"
    foreign = tmp_path / f"kept{suffix}"
    foreign.write_bytes(b"somebody's")
    with pytest.raises(UserError, match=rf"kept{suffix} exists.*remove it"):
        command._refuse_foreign_files(out, scores, "one")
    assert foreign.read_bytes() == b"somebody's"
    scores.unlink(missing_ok=True)
    _create(scores, 3, Position("one"))
    command._refuse_foreign_files(out, scores, "one")  # a stopped run's
    with pytest.raises(UserError, match="of another selection"):
        command._refuse_foreign_files(out, scores, "two")


def test_a_note_that_cannot_be_written(tmp_path):
    (tmp_path / "kept.scores.progress.json.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"progress\.json: cannot be written"):
        _note(tmp_path / "kept.scores.npy", Position("one"))


@pytest.mark.parametrize(
    ("lengths", "place", "left"),
    [
        ([5, 3], 0, 4),  # nothing predicts the corpus's first token
        ([1, 3], 1, 3),  # a first document of that token has no score
        ([0, 0, 4], 2, 3),
        ([0, 1, 4], 2, 4),
        ([1], 1, 0),
    ],
)
def test_the_first_document_with_a_score(lengths, place, left):
    found = _start("job", numpy.arange(len(lengths)), numpy.array(lengths))
    assert (found.place, found.left) == (place, left)
