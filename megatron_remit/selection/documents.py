"""The difference log p_large(x) - log p_small(x) of every document, from the score stores of two models.

The rows of a store (fixed by ``--row-seed``) are read in the order in which they were cut from the documents. Only the
sum of the open document is in memory; on disk are 8 bytes per document. A user's files and messages call the difference
the score of a document; here a score is a reference's NLL.

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

from megatron_remit.artifacts import unwritable, whole_files, write_whole
from megatron_remit.data.checked import CheckedGPTDataset
from megatron_remit.data.datasets import FixedRowsDataset
from megatron_remit.errors import UserError
from megatron_remit.score_store.files import DamagedFile
from megatron_remit.score_store.keys import row_key
from megatron_remit.score_store.reader import ScoreStore

# Rows between two notes of how far the work is. A killed run does them again.
_ROWS_PER_NOTE = 4096


@dataclass
class Position:
    """How far the work is. The open document is the one that the next row goes on with."""

    job: str
    """What the differences depend on, as a hash."""
    row: int = 0
    """Rows that have been read."""
    place: int = 0
    """Documents that are done, in the order in which rows were cut from them."""
    left: int = 0
    """Tokens of the open document that no row has predicted yet."""
    total: float = 0.0
    """The open document's difference so far, nats."""


def write_differences(dataset: FixedRowsDataset, large: ScoreStore, small: ScoreStore, path: Path, job: str) -> None:
    """Write the file ``path``, [d] float64, nats: each document's log p_large - log p_small, summed over its tokens.

    NaN stands for a document that no row covers to its end: the last ones, if the corpus is no multiple of the row
    length. A note of the position lies next to ``path``; a later call with the same ``job`` goes on from there.

    Raises:
        UserError: a store lacks a row or the row is damaged there, or the files are of another job or cannot be
            written.
        OSError: a store cannot be read.
    """
    lengths_D = dataset.dataset.sequence_lengths
    at = position(path, job)
    if at is None:
        at = _start(job, dataset.document_index, lengths_D)
        _create(path, len(lengths_D), at)
    difference_D = numpy.lib.format.open_memmap(path, "r+")
    read = _row_reader(dataset, large, small)
    rows = len(dataset.sample_index) - 1
    progress = tqdm(range(at.row, rows), desc="scoring documents", unit="row", initial=at.row, total=rows, disable=None)
    for row in progress:
        _add_row(at, read(row), difference_D, dataset.document_index, lengths_D)
        at.row = row + 1
        if at.row % _ROWS_PER_NOTE == 0 or at.row == rows:
            with writing(path):
                difference_D.flush()
            _note(path, at)


def _create(path: Path, documents: int, at: Position) -> None:
    """The note comes first: a file of differences without one is nobody's work of this program, and is left alone."""
    with writing(path), whole_files(path) as (temporary,):
        difference_D = numpy.lib.format.open_memmap(temporary, "w+", numpy.float64, (documents,))
        with temporary.open("r+b") as file:  # a full disk is an error here and not a killed process at some page
            os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        difference_D[:] = numpy.nan
        _note(path, at)


def _start(job: str, order: numpy.ndarray, lengths_D: numpy.ndarray) -> Position:
    """Before the first row. Nothing predicts the corpus's first token, so a document of that token has no score."""
    place, unpredicted = 0, 1
    while place < len(order) and lengths_D[order[place]] <= unpredicted:
        unpredicted -= int(lengths_D[order[place]])
        place += 1
    left = int(lengths_D[order[place]]) - unpredicted if place < len(order) else 0
    return Position(job, place=place, left=left)


def _add_row(
    at: Position, gain_S: numpy.ndarray, difference_D: numpy.ndarray, order: numpy.ndarray, lengths_D: numpy.ndarray
) -> None:
    start = 0
    while start < len(gain_S) and at.place < len(order):
        stop = min(len(gain_S), start + at.left)
        at.total += float(gain_S[start:stop].sum())
        at.left -= stop - start
        start = stop
        while at.left == 0 and at.place < len(order):
            difference_D[order[at.place]] = at.total
            at.place, at.total = at.place + 1, 0.0
            at.left = int(lengths_D[order[at.place]]) if at.place < len(order) else 0


def _row_reader(dataset: FixedRowsDataset, large: ScoreStore, small: ScoreStore) -> Callable[[int], numpy.ndarray]:
    # Megatron's dataset shuffles the rows through this index. Now they come in the order of the documents.
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


def note_of(path: Path) -> Path:
    """The file next to the differences in ``path`` that says how far they are."""
    return path.with_suffix(".progress.json")


def position(path: Path, job: str) -> Position | None:
    """How far ``job`` has come; None if it has not begun. Raises UserError if the files are of another job."""
    note = note_of(path)
    if not (note.is_file() and path.is_file()):
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


def _note(path: Path, at: Position) -> None:
    note = note_of(path)
    with writing(note):
        write_whole(note, json.dumps(asdict(at)))
