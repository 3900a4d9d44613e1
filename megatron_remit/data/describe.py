"""The manifest of a corpus that another tool wrote, such as Megatron's own: read from its tokens, in one pass."""

from collections import Counter
from pathlib import Path

import numpy
from megatron.core.datasets.indexed_dataset import IndexedDataset
from tqdm import tqdm

from megatron_remit.artifacts import whole_files
from megatron_remit.data import eod
from megatron_remit.data.checked import beyond_vocabulary, open_whole
from megatron_remit.data.corpus_files import check_pair, corpus_file
from megatron_remit.data.manifest import Manifest
from megatron_remit.data.tokenizer import load_encoder
from megatron_remit.errors import UserError

# Documents that are looked at together, and tokens that are compared at once.
_DOCUMENTS = 1 << 16
_TOKENS = 1 << 24


def describe(
    prefix: Path, tokenizer_type: str, tokenizer_model: Path, eod_token: str | None = None, overwrite: bool = False
) -> Manifest:
    """Write ``prefix``.json for the ``.bin`` and ``.idx`` that are there, and return it.

    All token ids are compared with the vocabulary; it cannot be known whether another tokenizer of that size wrote
    them. Documents end with a token if the same special token, or ``eod_token``, is the last of each. Memory does not
    grow with the corpus.

    Raises:
        UserError: files that are missing, damaged or empty, a token id beyond the vocabulary, a token that ends some
            documents and not others, or a manifest that is there (without ``overwrite``).
    """
    check_pair(prefix, overwrite)
    encoder = load_encoder(tokenizer_type, tokenizer_model)
    expected = eod.chosen(encoder, tokenizer_model, eod_token)
    corpus = open_whole(str(prefix))
    last = _last_tokens(corpus, corpus_file(prefix, ".bin"), encoder.vocabulary_size)
    end, appended = eod.found(last, encoder, expected, str(prefix))
    manifest = Manifest(
        encoder.fingerprint,
        int(corpus.sequence_lengths.sum()),
        len(corpus.document_indices) - 1,
        encoder.vocabulary_size,
        appended,
        end,
        tokenizer_type,
    )
    with whole_files(corpus_file(prefix, ".json")) as (path,):
        manifest.write(path)
    return manifest


def _last_tokens(corpus: IndexedDataset, path: Path, vocabulary_size: int) -> Counter[int]:
    """How many documents end with each id; documents without tokens are left out."""
    tokens = numpy.memmap(path, dtype=corpus.index.dtype, mode="r")
    borders, pointers, lengths = corpus.document_indices, corpus.index.sequence_pointers, corpus.sequence_lengths
    last: Counter[int] = Counter()
    position = 0
    with tqdm(total=len(tokens), unit="token", unit_scale=True, desc="reading", disable=None) as progress:
        for start in range(0, len(borders) - 1, _DOCUMENTS):
            border = borders[start : start + _DOCUMENTS + 1]
            final = border[1:][border[1:] > border[:-1]] - 1  # a document's last sequence, if it has any
            final = final[lengths[final] > 0]
            if not len(final):
                continue
            ends = pointers[final] // tokens.itemsize + lengths[final]
            while position < ends[-1]:
                part = tokens[position : min(position + _TOKENS, int(ends[-1]))]
                _check_ids(path, part, vocabulary_size)
                position += len(part)
                progress.update(len(part))
            ids, counts = numpy.unique(tokens[ends - 1], return_counts=True)
            last.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
    if not last:
        raise UserError(f"{path}: every document ends with an empty part; write the corpus again")
    return last


def _check_ids(path: Path, tokens: numpy.ndarray, vocabulary_size: int) -> None:
    largest, smallest = int(tokens.max()), int(tokens.min())
    if largest >= vocabulary_size or smallest < 0:
        raise beyond_vocabulary(str(path), largest if smallest >= 0 else smallest, vocabulary_size)
