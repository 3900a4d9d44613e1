"""What makes two tokenizers the same for ReMiT: every token string has the same id."""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer


def fingerprint(vocabulary: dict[str, int]) -> str:
    """SHA-256 over the (token, id) pairs in id order, as 64 hexadecimal digits."""
    pairs = sorted(vocabulary.items(), key=lambda pair: (pair[1], pair[0]))
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=True).encode()).hexdigest()


def folder_fingerprint(folder: Path) -> str | None:
    """Fingerprint of the Hugging Face tokenizer in ``folder``; None when it holds no tokenizer."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
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
