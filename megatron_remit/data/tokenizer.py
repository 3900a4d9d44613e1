"""The tokenizer: when two are the same (every token string has the same id), and one as the corpus tool needs it."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatron_remit.convert.hf_side_files import has_tokenizer
from megatron_remit.errors import DOWNLOAD, UserError


def fingerprint(vocabulary: dict[str, int]) -> str:
    """SHA-256 over the (token, id) pairs in id order, as 64 hexadecimal digits."""
    pairs = sorted(vocabulary.items(), key=lambda pair: (pair[1], pair[0]))
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=True).encode()).hexdigest()


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The Hugging Face tokenizer in ``folder`` as transformers reads it. Code in the folder is never run.

    Raises:
        UserError: it needs such code.
        OSError, ValueError: the folder holds no tokenizer, or a damaged one.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        if "custom code" not in str(error):
            raise
        raise UserError(
            f"{folder}: its tokenizer is Python code (auto_map in its config), which is never run here; put the files "
            "of a tokenizer that transformers knows into the folder, and take auto_map out"
        ) from None
    except RecursionError as error:
        raise ValueError(f"its JSON is nested too deeply: {error}") from None
    except (TypeError, AttributeError, KeyError) as error:
        # A list in place of an object, for one.
        raise ValueError(f"a JSON file of it does not hold what transformers expects: {error}") from error


def folder_fingerprint(folder: Path) -> str | None:
    """Fingerprint of the Hugging Face tokenizer in ``folder``; None when it holds no tokenizer."""
    if not has_tokenizer(folder):
        return None
    return fingerprint(open_tokenizer(folder).get_vocab())


def megatron_fingerprint(tokenizer: Any) -> str | None:
    """Fingerprint of Megatron's tokenizer; None for a kind that lists no token strings (NullTokenizer)."""
    try:
        vocabulary = tokenizer.vocab
    except (NotImplementedError, AttributeError, KeyError):
        return None
    if isinstance(vocabulary, list):
        vocabulary = {token: index for index, token in enumerate(vocabulary)}
    return fingerprint(vocabulary) if isinstance(vocabulary, dict) and vocabulary else None


@dataclass(frozen=True)
class Encoder:
    """A tokenizer as the corpus tool needs it."""

    encode: Callable[[str], list[int]]
    """Text to token ids, without special tokens."""
    vocabulary_size: int
    eod: int | None
    """Id that ends a document; None if the tokenizer has none."""
    fingerprint: str
    vocabulary: Mapping[str, int]
    """Every token string with its id."""
    special: frozenset[int]
    """Ids that stand for no text, such as the ends of documents and turns."""


def load_encoder(tokenizer_type: str, tokenizer_model: Path) -> Encoder:
    """Open a tokenizer by the names of Megatron's flags.

    Args:
        tokenizer_type: ``HuggingFaceTokenizer`` or ``SentencePieceTokenizer``.
        tokenizer_model: the Hugging Face folder, or the SentencePiece model file.

    Raises:
        UserError: the path holds no such tokenizer.
    """
    if not tokenizer_model.exists():
        raise UserError(f"--tokenizer-model {tokenizer_model}: no such file or folder; {DOWNLOAD}")
    if tokenizer_type == "SentencePieceTokenizer":
        return _sentencepiece(tokenizer_model)
    # Each process tokenizes one text at a time; threads inside would only compete for the cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokenizer = open_tokenizer(tokenizer_model)
    except (OSError, ValueError) as error:
        raise UserError(f"--tokenizer-model {tokenizer_model} holds no Hugging Face tokenizer ({error})") from error
    vocabulary = tokenizer.get_vocab()
    if tokenizer.is_fast:
        encode = _fast(tokenizer.backend_tokenizer)
    else:
        # verbose would warn of every document longer than the model's context.
        encode = partial(tokenizer.encode, add_special_tokens=False, verbose=False)
    size = max(vocabulary.values()) + 1
    rows = _embedding_rows(tokenizer_model)
    added = tokenizer.added_tokens_decoder
    return Encoder(
        encode,
        size if rows is None else min(size, rows),
        tokenizer.eos_token_id,
        fingerprint(vocabulary),
        vocabulary,
        frozenset(tokenizer.all_special_ids) | {index for index, token in added.items() if token.special},
    )


def _fast(backend: Tokenizer) -> Callable[[str], list[int]]:
    """The encoding without the character offsets that ``encode`` computes as well: 1.5 times as fast, the same ids."""
    backend.no_truncation()
    backend.no_padding()
    return lambda text: backend.encode_batch_fast([text], add_special_tokens=False)[0].ids


def _sentencepiece(model: Path) -> Encoder:
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (RuntimeError, OSError) as error:
        raise UserError(f"--tokenizer-model {model} is no SentencePiece model ({error})") from error
    size = pieces.get_piece_size()
    vocabulary = {pieces.id_to_piece(index): index for index in range(size)}
    return Encoder(
        pieces.encode,
        size,
        pieces.eos_id() if pieces.eos_id() >= 0 else None,
        fingerprint(vocabulary),
        vocabulary,
        frozenset(index for index in range(size) if pieces.is_control(index)),
    )


def _embedding_rows(folder: Path) -> int | None:
    """Vocabulary of the model whose config.json lies next to the tokenizer; None if there is none."""
    config = folder / "config.json"
    rows = json.loads(config.read_text()).get("vocab_size") if config.is_file() else None
    return rows if isinstance(rows, int) else None
