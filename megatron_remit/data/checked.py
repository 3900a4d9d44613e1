"""A corpus is checked before step 1, and each of its samples when it is drawn; errors name the file at fault."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.training import get_args
from megatron.training.utils import get_blend_and_blend_per_split

from megatron_remit.data.corpus_files import check_index, corpus_digest
from megatron_remit.data.eod import RunTokenizer
from megatron_remit.data.manifest import check_manifest, has_manifest, what_is_unknown
from megatron_remit.errors import UserError

# A corpus up to this many tokens is read through before step 1 (about a second); every sample of a larger one is
# checked when it is drawn.
_FULL_SCAN_TOKENS = 200_000_000


class CheckedGPTDataset(GPTDataset):
    """Megatron's GPT dataset that refuses a token outside the vocabulary: an embedding look-up would read past its
    end on a GPU, far from the cause.

    Megatron stores the order of documents and rows next to the corpus and finds it again by the corpus' path. Here its
    name follows from the corpus' content too: one that was replaced gets an order of its own.
    """

    def _build_document_sample_shuffle_indices(self) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
        if self._get_num_tokens_per_epoch() == 0:
            # Megatron would count epochs until they hold enough tokens, for ever.
            raise UserError(
                f"{self.dataset_path}: --split {self.config.split} leaves no document for the {self.index_split.name} "
                "set; give that share more, or a longer corpus"
            )
        self.unique_identifiers["corpus_digest"] = corpus_digest(self.dataset_path)
        # As Megatron makes both, before it calls this.
        self.unique_description = json.dumps(
            self.unique_identifiers, indent=4, default=lambda value: value.unique_identifiers
        )
        self.unique_description_hash = hashlib.md5(
            self.unique_description.encode("utf-8"), usedforsecurity=False
        ).hexdigest()
        return super()._build_document_sample_shuffle_indices()

    def __getitem__(self, index: int | None) -> dict[str, Any]:
        """One sample: ``tokens``, ``labels`` [s] int64 and the masks (GPTDataset). Raises UserError on a bad token."""
        sample = super().__getitem__(index)
        args = get_args()
        where = f"{self.dataset_path} (sample {index})"
        check_sample(sample, where, args.remit_vocab_size, getattr(args, "remit_common_vocab_size", None))
        return sample


def check_sample(sample: dict[str, Any], where: str, size: int, common: int | None) -> None:
    """Refuse a sample with a token id that the policy or the reference has no embedding row for.

    Args:
        sample: ``tokens`` and ``labels``, int64.
        where: the corpus and the sample's number, for the message.
        size: the policy's rows.
        common: the rows that the reference has too; None without a reference.

    Raises:
        UserError: names the id.
    """
    largest = max(int(sample["tokens"].max()), int(sample["labels"].max()))
    if largest >= size:
        raise beyond_vocabulary(where, largest, size)
    if common is not None and largest >= common:
        raise UserError(
            f"{where}: token id {largest} is beyond the {common} embedding rows of the reference; use a reference with "
            "a row for each token, or write the corpus without that token"
        )


def check_corpora(args: Any, vocabulary_size: int) -> None:
    """Open every corpus of the run once.

    Raises:
        UserError: a file is missing, holds no token, is cut short, or holds a token id >= ``vocabulary_size``.
    """
    if args.mock_data:
        return
    prefixes = list(corpora_of(args))
    if not prefixes:
        raise UserError("--data-path (or --train-data-path, --data-args-path) is not set; give the prefix of a corpus")
    for prefix in prefixes:
        corpus = open_whole(prefix)
        if corpus.sequence_lengths.sum() <= _FULL_SCAN_TOKENS:
            largest = int(numpy.memmap(prefix + ".bin", dtype=corpus.index.dtype, mode="r").max())
            if largest >= vocabulary_size:
                raise beyond_vocabulary(f"{prefix}.bin", largest, vocabulary_size)


def check_manifests(args: Any, tokenizer: RunTokenizer) -> None:
    """Compare the manifest of every corpus that has one with the run's tokenizer; say what nobody can check.

    Raises:
        UserError: another tokenizer, or another token at the end of documents; or the manifest is damaged.
    """
    for prefix in () if args.mock_data else dict.fromkeys(corpora_of(args)):
        manifest = check_manifest(prefix, tokenizer) if has_manifest(prefix) else None
        unknown = what_is_unknown(prefix, manifest)
        if unknown and args.rank == 0:
            print(f"> {unknown}", flush=True)


def corpora_of(args: Any) -> Iterable[str]:
    """The prefixes of all corpora that Megatron's data flags name, of every split."""
    blend, per_split = get_blend_and_blend_per_split(args)
    for one in [blend, *(per_split or [])]:
        if one is not None:
            yield from one[0]


def open_whole(prefix: str) -> IndexedDataset:
    """The corpus ``prefix``, memory-mapped.

    Raises:
        UserError: a file is missing, holds no token, is damaged or is cut short.
    """
    for suffix in (".idx", ".bin"):
        path = Path(prefix + suffix)
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; --data-path takes the prefix of a .bin/.idx pair "
                "(tools/preprocess_corpus.py writes one)"
            )
    if Path(prefix + ".bin").stat().st_size == 0:
        raise UserError(f"{prefix}.bin holds no tokens; an empty corpus cannot be trained on")
    check_index(Path(prefix + ".idx"))
    try:
        corpus = IndexedDataset(prefix, mmap=True)
    except (ValueError, AssertionError, OSError) as error:
        raise UserError(f"{prefix}.idx cannot be read ({error}); run tools/preprocess_corpus.py again") from error
    tokens = int(corpus.sequence_lengths.sum())
    if tokens == 0:
        raise UserError(f"{prefix}.idx lists {len(corpus)} documents without any token; the corpus is empty")
    width = numpy.dtype(corpus.index.dtype).itemsize
    found = Path(prefix + ".bin").stat().st_size
    if found != tokens * width:
        cause = "the file is cut short" if found < tokens * width else f"{prefix}.idx is that of another corpus"
        raise UserError(
            f"{prefix}.bin has {found} bytes, its index expects {tokens * width}: {cause}; copy both files anew, or "
            "run tools/preprocess_corpus.py again"
        )
    return corpus


def beyond_vocabulary(where: str, token: int, size: int) -> UserError:
    """The error for a token id that the model has no row for."""
    return UserError(
        f"{where}: token id {token} is beyond the model's vocabulary of {size} tokens; "
        "the corpus was written with another tokenizer: run tools/preprocess_corpus.py with this one"
    )
