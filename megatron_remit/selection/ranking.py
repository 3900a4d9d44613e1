"""The k-th largest of very many scores, read in pieces: memory does not grow with their number."""

from dataclasses import dataclass

import numpy

_PIECE = 1 << 20
_BITS = 16


@dataclass(frozen=True)
class Threshold:
    """Kept are all scores above ``score``, and of those equal to it the first ``ties`` in the order of the corpus."""

    score: float
    ties: int


def threshold(scores_N: numpy.ndarray, keep: int) -> Threshold:
    """The threshold that keeps exactly ``keep`` of the scores (float64; NaN takes no part).

    A radix selection: four passes, each of which fixes 16 more bits of the threshold from a histogram.

    Raises:
        ValueError: fewer than ``keep`` scores, or ``keep`` below 1.
    """
    prefix, left = 0, keep
    for shift in range(64 - _BITS, -1, -_BITS):
        histogram = numpy.zeros(1 << _BITS, dtype=numpy.int64)
        for start in range(0, len(scores_N), _PIECE):
            key_P = _ordered(numpy.asarray(scores_N[start : start + _PIECE]))
            if shift + _BITS < 64:
                key_P = key_P[(key_P >> numpy.uint64(shift + _BITS)) == numpy.uint64(prefix)]
            digit_P = (key_P >> numpy.uint64(shift)) & numpy.uint64((1 << _BITS) - 1)
            histogram += numpy.bincount(digit_P.astype(numpy.int64), minlength=1 << _BITS)
        from_top = numpy.cumsum(histogram[::-1])
        if not 1 <= left <= from_top[-1]:
            raise ValueError(f"cannot keep {keep} of {from_top[-1]} scores")
        place = int(numpy.searchsorted(from_top, left))
        left -= int(from_top[place] - histogram[::-1][place])
        prefix = (prefix << _BITS) | ((1 << _BITS) - 1 - place)
    return Threshold(_score(prefix), left)


def count_known(scores_N: numpy.ndarray) -> int:
    """How many of the scores are numbers and not NaN."""
    pieces = (scores_N[start : start + _PIECE] for start in range(0, len(scores_N), _PIECE))
    return sum(int(numpy.count_nonzero(~numpy.isnan(piece_P))) for piece_P in pieces)


def _ordered(score_P: numpy.ndarray) -> numpy.ndarray:
    """uint64 keys in the order of the scores: IEEE 754 orders magnitudes as integers, with the sign apart."""
    bits_P = (score_P[~numpy.isnan(score_P)] + 0.0).view(numpy.uint64)  # + 0.0 makes -0.0 the 0.0 that it equals
    sign = numpy.uint64(1 << 63)
    return numpy.where(bits_P & sign, ~bits_P, bits_P | sign)


def _score(key: int) -> float:
    bits = key ^ (1 << 63) if key >> 63 else key ^ ((1 << 64) - 1)
    return float(numpy.array(bits, dtype=numpy.uint64).view(numpy.float64))
