"""JSONL text to Megatron's .bin/.idx corpus, in parallel, in constant memory, documents in their order."""

import itertools
import multiprocessing
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from tqdm import tqdm

from megatron_remit.artifacts import whole_files
from megatron_remit.data.documents import Block, blocks
from megatron_remit.data.manifest import Counts, Manifest
from megatron_remit.data.tokenizer import Encoder, load_encoder
from megatron_remit.errors import UserError


def preprocess(
    inputs: list[Path],
    output_prefix: Path,
    tokenizer_type: str,
    tokenizer_model: Path,
    json_key: str = "text",
    workers: int = 1,
    append_eod: bool = True,
) -> Counts:
    """Write ``output_prefix``.bin, .idx and .json (a manifest of sources, tokenizer and counts).

    The files get their names only when they are whole; an older corpus of that name is replaced, together with the
    sample indices that Megatron cached for it. ``.gz`` files are read as well; blank lines are skipped.

    Raises:
        UserError: names the file and line of bad input, or the flag; nothing is left behind.
    """
    bin_file, manifest_file, idx_file = (Path(f"{output_prefix}{suffix}") for suffix in (".bin", ".json", ".idx"))
    _check_paths(inputs, (bin_file, manifest_file, idx_file), workers)
    encoder = load_encoder(tokenizer_type, tokenizer_model)
    if append_eod and encoder.eod is None:
        raise UserError(
            f"--tokenizer-model {tokenizer_model} has no end-of-sequence token to end documents with; "
            "add one to the tokenizer or pass --no-append-eod"
        )
    output_prefix.parent.mkdir(parents=True, exist_ok=True)
    # Without an index Megatron sees no corpus: the old one goes first and the new one comes last.
    with whole_files(bin_file, manifest_file, idx_file) as (new_bin, new_manifest, new_idx):
        counts = _write(inputs, new_bin, new_idx, _Job(encoder, json_key, encoder.eod if append_eod else None), workers)
        manifest = Manifest(
            [str(path) for path in inputs],
            tokenizer_type,
            encoder.fingerprint,
            encoder.vocabulary_size,
            append_eod,
            counts,
        )
        manifest.write(new_manifest)
        idx_file.unlink(missing_ok=True)
        # Megatron names its cached sample order by the prefix, not by the content: it would use the old corpus's.
        shutil.rmtree(output_prefix / "cache", ignore_errors=True)
    return counts


def _check_paths(inputs: list[Path], targets: Iterable[Path], workers: int) -> None:
    outputs = {path.resolve() for path in targets}
    for path in inputs:
        if not path.is_file():
            raise UserError(f"--input {path}: no such file")
        if path.resolve() in outputs:
            raise UserError(f"--input {path}: --output-prefix would overwrite it; choose another prefix")
    if workers < 1:
        raise UserError(f"--workers {workers}: expected at least 1")


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
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(job,)) as pool:
        try:
            under_way: deque[tuple[Block, Future]] = deque()
            for block in source:
                under_way.append((block, pool.submit(_run, block)))
                if len(under_way) > 4 * workers:
                    yield _finish(*under_way.popleft())
            while under_way:
                yield _finish(*under_way.popleft())
        except BrokenProcessPool:
            raise UserError(
                f"one of the {workers} processes that tokenize was ended from outside (out of memory?); "
                "use fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _finish(block: Block, future: Future) -> _Encoded:
    return _Encoded(block, *future.result())


_job: "_Job"


def _start(job: "_Job") -> None:
    global _job
    _job = job
    # Ctrl-C reaches every process of the terminal; only the parent answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(block: Block) -> tuple[list[int], numpy.ndarray]:
    """In a worker process. The block itself is not sent back."""
    done = _job.run(block)
    return done.lengths, done.ids


@dataclass(frozen=True)
class _Job:
    """What is done to each line."""

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
