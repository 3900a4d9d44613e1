"""The threshold that keeps exactly so many of the scores, against sorting them."""

import tracemalloc

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_remit.selection.corpus import threshold

NUMBERS = st.floats(allow_infinity=False, width=64) | st.sampled_from([0.0, -0.0, 1.5, -1.5, float("nan")])


@settings(max_examples=150, deadline=None)
@given(values=st.lists(NUMBERS, min_size=1, max_size=40), keep=st.integers(1, 40))
def test_it_keeps_the_largest_and_of_equal_ones_the_first(values, keep):
    scores = numpy.array(values)
    known = [number for number in range(len(values)) if not numpy.isnan(scores[number])]
    if len(known) < keep:
        with pytest.raises(ValueError, match="cannot keep"):
            threshold(scores, keep)
        return
    before = scores.copy()
    found = threshold(scores, keep)
    numpy.testing.assert_array_equal(scores, before)
    expected = sorted(known, key=lambda number: (-scores[number], number))[:keep]
    equal = [number for number in known if scores[number] == found.value]
    above = [number for number in known if scores[number] > found.value]
    assert sorted(expected) == sorted(above + equal[: found.ties])


def test_none_is_refused():
    with pytest.raises(ValueError, match="cannot keep 0"):
        threshold(numpy.ones(3), 0)


def test_a_mapped_file_of_scores_takes_ten_bytes_of_memory_per_document(tmp_path):
    documents = 1 << 18
    numpy.save(tmp_path / "scores.npy", numpy.random.default_rng(0).normal(size=documents))
    scores = numpy.load(tmp_path / "scores.npy", mmap_mode="r")
    tracemalloc.start()
    try:
        threshold(scores, documents // 5)
        assert tracemalloc.get_traced_memory()[1] < 10 * documents + 100_000
    finally:
        tracemalloc.stop()
