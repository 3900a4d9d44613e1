"""log p_large(x) - log p_small(x) of every document, from the score stores of two models.

The rows of a store (fixed by ``--row-seed``) are read in the order in which they were cut from the documents. In memory
is the open document's sum, on disk 8 bytes for each document.

Shape suffixes: S tokens of a row, D documents of the corpus.
"""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy
from tqdm import tqdm

from megatron_remit.artifacts import unwritable, write_whole
from megatron_remit.data.checked import CheckedGPTDataset
from megatron_remit.data.fixed_rows import FixedRowsDataset
from megatron_remit.errors import UserError
from megatron_remit.score_store.files import DamagedFile
from megatron_remit.score_store.keys import row_key
from megatron_remit.score_store.reader import ScoreStore

# Rows between two notes of how far the work is: what a killed run does again.
_ROWS_A_NOTE = 4096


@dataclass
class Position:
    """How far the documents are scored: all of ``place`` before it, and ``total`` of the open one."""

    job: str
    row: int = 0
    place: int = 0
    left: int = 0
    """Tokens of the open document that no row has predicted yet."""
    total: float = 0.0


def score_documents(dataset: FixedRowsDataset, large: ScoreStore, small: ScoreStore, scores: Path, job: str) -> None:
    """Write ``scores`` [D] float64, nats: each document's summed log p_large - log p_small over its tokens.

    NaN stands for a document that no row covers to its end: the last ones, if the corpus is no multiple of the row
    length. Beside ``scores`` a note of the position is kept, from which a later call with the same ``job`` goes on.

    Raises:
        UserError: a store lacks a row or it is damaged there, or the files are of another job or cannot be written.
        OSError: a store cannot be read.
    """
    lengths_D = dataset.dataset.sequence_lengths
    at = position(scores, job)
    if at is None:
        at = _start(job, dataset.document_index, lengths_D)
        _create(scores, len(lengths_D))
        _note(scores, at)
    score_D = numpy.lib.format.open_memmap(scores, "r+")
    read = _row_reader(dataset, large, small)
    rows = len(dataset.sample_index) - 1
    progress = tqdm(range(at.row, rows), desc="scoring documents", unit="row", initial=at.row, total=rows, disable=None)
    for row in progress:
        _add_row(at, read(row), score_D, dataset.document_index, lengths_D)
        at.row = row + 1
        if at.row % _ROWS_A_NOTE == 0 or at.row == rows:
            with writing(scores):
                score_D.flush()
            _note(scores, at)


def _create(scores: Path, documents: int) -> None:
    with writing(scores):
        note_of(scores).unlink(missing_ok=True)  # else it would speak for the file that is made now
        score_D = numpy.lib.format.open_memmap(scores, "w+", numpy.float64, (documents,))
        with scores.open("r+b") as file:  # a full disk is an error here and not a killed process at some page
            os.posix_fallocate(file.fileno(), 0, scores.stat().st_size)
        score_D[:] = numpy.nan


def _start(job: str, order: numpy.ndarray, lengths_D: numpy.ndarray) -> Position:
    """Before the first row. Nothing predicts the corpus's first token, so a document of that token has no score."""
    place, unpredicted = 0, 1
    while place < len(order) and lengths_D[order[place]] <= unpredicted:
        unpredicted -= int(lengths_D[order[place]])
        place += 1
    left = int(lengths_D[order[place]]) - unpredicted if place < len(order) else 0
    return Position(job, place=place, left=left)


def _add_row(
    at: Position, gain_S: numpy.ndarray, score_D: numpy.ndarray, order: numpy.ndarray, lengths_D: numpy.ndarray
) -> None:
    start = 0
    while start < len(gain_S) and at.place < len(order):
        stop = min(len(gain_S), start + at.left)
        at.total += float(gain_S[start:stop].sum())
        at.left -= stop - start
        start = stop
        while at.left == 0 and at.place < len(order):
            score_D[order[at.place]] = at.total
            at.place, at.total = at.place + 1, 0.0
            at.left = int(lengths_D[order[at.place]]) if at.place < len(order) else 0


def _row_reader(dataset: FixedRowsDataset, large: ScoreStore, small: ScoreStore) -> Callable[[int], numpy.ndarray]:
    # Megatron's dataset shuffles the rows through this: now they come in the order of the documents.
    dataset.shuffle_index = range(len(dataset.sample_index) - 1)
    identity = large.manifest.identity

    def read(row: int) -> numpy.ndarray:
        sample = CheckedGPTDataset.__getitem__(dataset, row)
        key = row_key(sample, identity.reset_position_ids, identity.reset_attention_mask)
        large_S, small_S = (_read(store, key, row) for store in (large, small))
        return small_S.astype(numpy.float64) - large_S

    return read


def _read(store: ScoreStore, key: tuple[int, int], row: int) -> numpy.ndarray:
    try:
        nll_S = store.read(key)
    except DamagedFile as error:
        raise UserError(f"{store.folder}: row {row} of the corpus: {error}; prune the store and score again") from None
    if nll_S is None:
        raise UserError(
            f"{store.folder}: row {row} of the corpus is not in it; score the whole corpus with tools/score_corpus.py, "
            "the same data flags and the same --row-seed, for at least one epoch"
        )
    return nll_S


def writing(out: Path) -> AbstractContextManager[None]:
    """Around what writes the files of ``out``: an OSError becomes a UserError."""
    return unwritable(f"--out {out}: cannot be written", "free space or choose another folder")


def note_of(scores: Path) -> Path:
    """The file beside ``scores`` that says how far they are."""
    return scores.with_suffix(".progress.json")


def position(scores: Path, job: str) -> Position | None:
    """How far ``job`` has come; None if it has not begun. Raises UserError if the files are of another job."""
    note = note_of(scores)
    if not (note.is_file() and scores.is_file()):
        return None
    try:
        found = Position(**json.loads(note.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{note}: cannot be read ({error}); remove it to begin anew") from None
    if found.job != job:
        raise UserError(
            f"{note}: of another selection (other stores, corpus or --row-seed); remove it to begin anew, or choose "
            "another --out"
        )
    return found


def _note(scores: Path, at: Position) -> None:
    note = note_of(scores)
    with writing(note):
        write_whole(note, json.dumps(asdict(at)))
