"""Text files to Megatron's .bin/.idx corpus, in parallel, in constant memory, documents in their order."""

import ctypes
import itertools
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from tqdm import tqdm

from megatron_remit.data import eod, parquet
from megatron_remit.data.corpus_files import check_paths, new_corpus
from megatron_remit.data.documents import Block, blocks
from megatron_remit.data.manifest import Manifest
from megatron_remit.data.tokenizer import Encoder, load_encoder
from megatron_remit.errors import UserError, check_workers

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Counts:
    """What was written: ``bytes`` are those of the input's lines and texts, uncompressed."""

    documents: int
    tokens: int
    bytes: int
    seconds: float


def preprocess(
    inputs: list[Path],
    output_prefix: Path,
    tokenizer_type: str,
    tokenizer_model: Path,
    json_key: str = "text",
    workers: int = 1,
    append_eod: bool = True,
    eod_token: str | None = None,
    overwrite: bool = False,
) -> Counts:
    """Write ``output_prefix``.bin, .idx and .json (a manifest of sources, tokenizer, end of documents and counts).

    The inputs are JSONL, also as ``.gz`` and ``.zst``, with the text at ``json_key``, or ``.parquet`` with that column;
    blank lines are skipped. The files get their names only when they are whole. ``overwrite`` replaces an older corpus
    of that name then, and the sample indices that Megatron cached for it. ``eod_token`` ends the documents in place of
    the tokenizer's end-of-sequence token.

    Raises:
        UserError: names the file and line of bad input, or the flag; nothing is left behind.
    """
    check_paths(inputs, output_prefix, overwrite)
    if workers < 1:
        raise UserError(f"--workers {workers}: expected at least 1")
    check_workers("--workers", workers)
    for path in inputs:
        if path.suffix == parquet.SUFFIX:
            parquet.check_column(path, json_key)
    encoder = load_encoder(tokenizer_type, tokenizer_model)
    end = eod.chosen(encoder, tokenizer_model, eod_token)
    if append_eod and end is None:
        raise UserError(
            f"--tokenizer-model {tokenizer_model} has no end-of-sequence token to end documents with; "
            "name another one with --eod-token or pass --no-append-eod"
        )
    with new_corpus(output_prefix) as (new_bin, new_manifest, new_idx):
        job = _Job(encoder, json_key, end.id if append_eod and end is not None else None)
        counts = _write(inputs, new_bin, new_idx, job, workers)
        manifest = Manifest(
            encoder.fingerprint,
            counts.tokens,
            counts.documents,
            encoder.vocabulary_size,
            append_eod,
            end,
            tokenizer_type,
            [str(path) for path in inputs],
        )
        manifest.write(new_manifest, bytes=counts.bytes, seconds=counts.seconds)
    return counts


def _write(inputs: list[Path], bin_file: Path, idx_file: Path, job: "_Job", workers: int) -> Counts:
    builder = IndexedDatasetBuilder(str(bin_file), dtype=DType.optimal_dtype(job.encoder.vocabulary_size))
    documents = tokens = size = 0
    start = time.perf_counter()
    try:
        with tqdm(total=sum(path.stat().st_size for path in inputs), unit="B", unit_scale=True) as bar:
            for done in _encoded(blocks(inputs, job.json_key), job, workers):
                for row in numpy.split(done.ids, numpy.cumsum(done.lengths)[:-1]) if done.lengths else ():
                    builder.add_document(torch.from_numpy(row), [row.size])
                documents += len(done.lengths)
                tokens += done.ids.size
                size += done.block.size
                bar.update(done.block.file_bytes)
        if tokens == 0:
            raise UserError(f"{', '.join(map(str, inputs))}: no text in it; an empty corpus cannot be trained on")
        builder.finalize(str(idx_file))
    finally:
        builder.data_file.close()
    return Counts(documents, tokens, size, time.perf_counter() - start)


@dataclass(frozen=True)
class _Encoded:
    """The documents of a block: tokens of all of them [sum of lengths], int32."""

    block: Block
    lengths: list[int]
    ids: numpy.ndarray


def _encoded(source: Iterator[Block], job: "_Job", workers: int) -> Iterator[_Encoded]:
    """The blocks encoded, in their order. A few blocks for each process are under way, so memory does not grow."""
    if workers == 1:
        yield from map(job.run, source)
        return
    # Forked processes share the tokenizer that is already loaded.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), initializer=_start, initargs=(job,))
    try:
        # All are forked at the first task: before the source is opened, whose libraries may start threads.
        pool.submit(int).result()
        under_way: deque[tuple[Block, Future]] = deque()
        for block in source:
            under_way.append((block, pool.submit(_run, block)))
            if len(under_way) > 4 * workers:
                yield _finish(*under_way.popleft())
        while under_way:
            yield _finish(*under_way.popleft())
    except BrokenProcessPool:
        raise UserError(
            f"one of the {workers} processes that tokenize was ended from outside (out of memory?); use fewer --workers"
        ) from None
    except (KeyboardInterrupt, SystemExit):
        # A signal may have come while the pool held its own locks: nothing is asked of it any more, and the workers end
        # with this process.
        raise
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _finish(block: Block, future: Future) -> _Encoded:
    return _Encoded(block, *future.result())


_job: "_Job"


def _start(job: "_Job") -> None:
    global _job
    _job = job
    # Ctrl-C, a batch system or a closed terminal reaches every process; only the parent answers.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The kernel ends them with the parent, however that ends.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _run(block: Block) -> tuple[list[int], numpy.ndarray]:
    """In a worker process. The block itself is not sent back."""
    done = _job.run(block)
    return done.lengths, done.ids


@dataclass(frozen=True)
class _Job:
    """What is done to each document."""

    encoder: Encoder
    json_key: str
    eod: int | None
    """Id that ends each document, or None."""

    def run(self, block: Block) -> _Encoded:
        """Token ids of a block's documents; blank lines and empty documents are left out."""
        rows = [self._row(place, text) for place, text in block.texts(self.json_key)]
        rows = [row for row in rows if row]
        ids = numpy.fromiter(itertools.chain.from_iterable(rows), dtype=numpy.int32)
        return _Encoded(block, [len(row) for row in rows], ids)

    def _row(self, place: str, text: str) -> list[int]:
        ids = self.encoder.encode(text)
        if not ids:
            return []
        if max(ids) >= self.encoder.vocabulary_size:
            raise UserError(
                f"{place}: token id {max(ids)} is beyond the vocabulary of {self.encoder.vocabulary_size}; "
                "does the tokenizer belong to the model of its config.json?"
            )
        return [*ids, self.eod] if self.eod is not None else ids
