"""The threshold that keeps exactly so many of the scores, against sorting them."""

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_remit.selection import ranking
from megatron_remit.selection.ranking import threshold

NUMBERS = st.floats(allow_infinity=False, width=64) | st.sampled_from([0.0, -0.0, 1.5, -1.5, float("nan")])


@settings(max_examples=150, deadline=None)
@given(values=st.lists(NUMBERS, min_size=1, max_size=40), keep=st.integers(1, 40), piece=st.sampled_from([1, 7, 1000]))
def test_it_keeps_the_largest_and_of_equal_ones_the_first(values, keep, piece):
    scores = numpy.array(values)
    known = [number for number in range(len(values)) if not numpy.isnan(scores[number])]
    if len(known) < keep:
        with pytest.raises(ValueError, match="cannot keep"):
            threshold(scores, keep)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_PIECE", piece)
        found = threshold(scores, keep)
    expected = sorted(known, key=lambda number: (-scores[number], number))[:keep]
    equal = [number for number in known if scores[number] == found.score]
    above = [number for number in known if scores[number] > found.score]
    assert sorted(expected) == sorted(above + equal[: found.ties])


def test_none_is_refused():
    with pytest.raises(ValueError, match="cannot keep 0"):
        threshold(numpy.ones(3), 0)
