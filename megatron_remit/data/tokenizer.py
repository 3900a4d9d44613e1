"""What makes two tokenizers the same for ReMiT: every token string has the same id."""

import hashlib
import json
from pathlib import Path
from typing import Any

from megatron_remit.errors import UserError


def fingerprint(vocabulary: dict[str, int]) -> str:
    """SHA-256 over the (token, id) pairs in id order, as 64 hexadecimal digits."""
    pairs = sorted(vocabulary.items(), key=lambda pair: (pair[1], pair[0]))
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=True).encode()).hexdigest()


def folder_fingerprint(folder: Path) -> str | None:
    """Fingerprint of the Hugging Face tokenizer in ``folder``; None when it holds no tokenizer."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    from transformers import AutoTokenizer

    return fingerprint(AutoTokenizer.from_pretrained(folder).get_vocab())


def megatron_fingerprint(tokenizer: Any) -> str | None:
    """Fingerprint of Megatron's tokenizer; None for a kind that lists no token strings (NullTokenizer)."""
    try:
        vocabulary = tokenizer.vocab
    except (NotImplementedError, AttributeError, KeyError):
        return None
    if isinstance(vocabulary, list):
        vocabulary = {token: index for index, token in enumerate(vocabulary)}
    return fingerprint(vocabulary) if isinstance(vocabulary, dict) and vocabulary else None


def check_end_of_document(tokenizer: Any, name: str | None) -> None:
    """Raise UserError if the labels of Megatron's dataset do not show where documents end.

    The dataset masks every label that is the padding token and writes token 0 in its place.
    """
    if tokenizer.eod is None:
        raise UserError(
            f"--remit-centering document: the tokenizer {name} has no end-of-document token (eos_token), so borders "
            "between documents are unknown; give it one, or use --remit-centering sequence"
        )
    if tokenizer.eod == tokenizer.pad:
        raise UserError(
            f"--remit-centering document: in the tokenizer {name} token {tokenizer.eod} both ends a document and pads; "
            "Megatron's dataset removes padding from the labels and the borders with it: give the tokenizer a padding "
            "token of its own, or use --remit-centering sequence"
        )
