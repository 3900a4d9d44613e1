"""The kept documents as a new corpus, with a manifest of what was kept and why."""

import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from tqdm import tqdm

from megatron_remit.selection.ranking import Threshold


@dataclass
class Share:
    """Documents of one fate."""

    documents: int = 0
    tokens: int = 0
    _sum: float = field(default=0.0, repr=False)

    def add(self, tokens: int, score: float) -> None:
        """Count one more."""
        self.documents, self.tokens = self.documents + 1, self.tokens + tokens
        self._sum += score

    def content(self) -> dict[str, Any]:
        """For the manifest."""
        mean = self._sum / self.documents if self.documents else None
        scored = None if mean is None or numpy.isnan(mean) else mean
        return {"documents": self.documents, "tokens": self.tokens, "mean score": scored}


def write_selection(
    corpus: IndexedDataset, scores_D: numpy.ndarray, cut: Threshold, per_token: bool, out: Path
) -> dict[str, dict[str, Any]]:
    """Write the documents that the threshold keeps, in the order of the corpus, as OUT.bin and OUT.idx.

    A document without a score (NaN) is kept: nothing speaks against it. Returns what became of how many: ``kept``,
    ``dropped``, ``kept without a score``.

    Raises:
        OSError: the files cannot be written.
    """
    shares = {"kept": Share(), "dropped": Share(), "kept without a score": Share()}
    parts = {suffix: out.with_name(f"{out.name}.tmp{suffix}") for suffix in (".bin", ".idx")}
    ties = cut.ties
    try:
        builder = IndexedDatasetBuilder(str(parts[".bin"]), dtype=corpus.index.dtype)
        # 12 bytes a document in the place of Megatron's lists of Python integers.
        builder.sequence_lengths, builder.document_indices = array("i"), array("q", [0])
        for number in tqdm(range(len(scores_D)), desc="writing documents", unit="document", disable=None):
            length = int(corpus.sequence_lengths[number])
            score = ranked(scores_D[number : number + 1], corpus.sequence_lengths[number : number + 1], per_token)[0]
            fate = "kept without a score" if numpy.isnan(score) else "kept" if score > cut.score else "dropped"
            if score == cut.score and ties:
                fate, ties = "kept", ties - 1
            shares[fate].add(length, float(score))
            if fate != "dropped":
                builder.add_document(corpus[number], [length])
        builder.finalize(str(parts[".idx"]))
        for suffix, part in parts.items():
            os.replace(part, out.with_name(out.name + suffix))
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return {fate: share.content() for fate, share in shares.items()}


def ranked(score_P: numpy.ndarray, length_P: numpy.ndarray, per_token: bool) -> numpy.ndarray:
    """What documents are ranked by: the summed difference, nats, or that for each token."""
    return score_P / numpy.maximum(length_P, 1) if per_token else numpy.asarray(score_P)
