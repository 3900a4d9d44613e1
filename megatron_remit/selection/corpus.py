"""Which documents are kept, and the kept documents as a new corpus.

Shape suffixes: D documents of the corpus.
"""

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from tqdm import tqdm

from megatron_remit.artifacts import whole_files


@dataclass(frozen=True)
class Threshold:
    """All documents above ``value`` are kept, and of those equal to it the first ``ties`` in the corpus's order."""

    value: float
    ties: int


def ranked(difference_D: numpy.ndarray, length_D: numpy.ndarray, per_token: bool) -> numpy.ndarray:
    """The numbers [d] by which documents are ranked: the summed difference, nats, or that sum per token.

    Args:
        difference_D: log p_large - log p_small of each document, nats; may be memory-mapped.
        length_D: tokens of each document.
    """
    return difference_D / numpy.maximum(length_D, 1) if per_token else numpy.asarray(difference_D)


def threshold(ranked_D: numpy.ndarray, keep: int) -> Threshold:
    """The threshold that keeps exactly ``keep`` documents (float64; NaN takes no part).

    ``ranked_D`` may be memory-mapped. A copy of it is partitioned in memory: 8 bytes per document, and at most 2 more
    for comparisons.

    Raises:
        ValueError: fewer than ``keep`` numbers, or ``keep`` below 1.
    """
    known = numpy.asarray(ranked_D)[~numpy.isnan(ranked_D)]
    if not 1 <= keep <= len(known):
        raise ValueError(f"cannot keep {keep} of {len(known)} scores")
    known += 0.0  # -0.0 becomes the 0.0 that it equals
    place = len(known) - keep
    known.partition(place)
    value = known[place]
    return Threshold(float(value), keep - int(numpy.count_nonzero(known > value)))


@dataclass
class Share:
    """The documents that were kept, or those that were dropped, counted."""

    documents: int = 0
    tokens: int = 0
    _sum: float = field(default=0.0, repr=False)

    def add(self, tokens: int, rank_by: float) -> None:
        """Count one more document, and the number by which it is ranked."""
        self.documents, self.tokens = self.documents + 1, self.tokens + tokens
        self._sum += rank_by

    def content(self) -> dict[str, Any]:
        """For the manifest, which calls the number that ranks a document its score."""
        mean = self._sum / self.documents if self.documents else None
        score = None if mean is None or numpy.isnan(mean) else mean
        return {"documents": self.documents, "tokens": self.tokens, "mean score": score}


def write_selection(
    corpus: IndexedDataset, ranked_D: numpy.ndarray, cut: Threshold, out: Path
) -> dict[str, dict[str, Any]]:
    """Write the documents that the threshold keeps, in the order of the corpus, as OUT.bin and OUT.idx.

    A document with NaN in ``ranked_D`` is kept: nothing speaks against it.

    Returns:
        How many documents and tokens were ``kept``, ``dropped`` and ``kept without a score``.

    Raises:
        OSError: the files cannot be written.
    """
    shares = {"kept": Share(), "dropped": Share(), "kept without a score": Share()}
    ties = cut.ties
    with whole_files(*(out.with_name(out.name + suffix) for suffix in (".bin", ".idx"))) as (tokens, index):
        builder = IndexedDatasetBuilder(str(tokens), dtype=corpus.index.dtype)
        # 12 bytes per document in the place of Megatron's lists of Python integers.
        builder.sequence_lengths, builder.document_indices = array("i"), array("q", [0])
        for number in tqdm(range(len(ranked_D)), desc="writing documents", unit="document", disable=None):
            length, value = int(corpus.sequence_lengths[number]), float(ranked_D[number])
            fate = "kept without a score" if numpy.isnan(value) else "kept" if value > cut.value else "dropped"
            if value == cut.value and ties:
                fate, ties = "kept", ties - 1
            shares[fate].add(length, value)
            if fate != "dropped":
                builder.add_document(corpus[number], [length])
        builder.finalize(str(index))
    return {fate: share.content() for fate, share in shares.items()}
