"""The token that ends a document: chosen when a corpus is written, found in one that is there, known by a run.

A corpus and a run must agree on it: where they do not, documents run into each other unnoticed, or the model learns to
end its texts with another model's token.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_remit.data.tokenizer import Encoder, folder_fingerprint, megatron_fingerprint, open_tokenizer
from megatron_remit.errors import UserError


@dataclass(frozen=True)
class Eod:
    """An end-of-document token."""

    token: str
    id: int

    def __str__(self) -> str:
        return f"{self.token!r} (id {self.id})"


@dataclass(frozen=True)
class RunTokenizer:
    """What a run knows of its tokenizer; None is unknown, and fits everything."""

    name: str
    """The folder or file, as the user gave it."""
    fingerprint: str | None
    eod: Eod | None

    @classmethod
    def of_folder(cls, folder: Path) -> "RunTokenizer":
        """The Hugging Face tokenizer in ``folder``. Raises UserError if there is none."""
        fingerprint = folder_fingerprint(folder)
        if fingerprint is None:
            raise UserError(f"{folder}: holds no tokenizer; expected a Hugging Face folder with the base model's own")
        tokenizer = open_tokenizer(folder)
        eod = None if tokenizer.eos_token_id is None else Eod(tokenizer.eos_token, tokenizer.eos_token_id)
        return cls(str(folder), fingerprint, eod)

    @classmethod
    def of_megatron(cls, tokenizer: Any, name: str) -> "RunTokenizer":
        """Megatron's tokenizer. Its document masks look for the same token."""
        fingerprint = megatron_fingerprint(tokenizer)
        if fingerprint is None:
            return cls(name, None, None)
        vocabulary = tokenizer.vocab
        pairs = (
            enumerate(vocabulary) if isinstance(vocabulary, list) else ((i, token) for token, i in vocabulary.items())
        )
        found = next((Eod(token, index) for index, token in pairs if index == tokenizer.eod), None)
        return cls(name, fingerprint, found)


def chosen(encoder: Encoder, model: Path, token: str | None) -> Eod | None:
    """``token`` (of ``--eod-token``), or the tokenizer's end-of-sequence token; None if it has none.

    Raises:
        UserError: the vocabulary has no such token.
    """
    names = names_of(encoder.vocabulary, encoder.special)
    if token is None:
        return None if encoder.eod is None else Eod(names.get(encoder.eod, str(encoder.eod)), encoder.eod)
    index = encoder.vocabulary.get(token)
    if index is None:
        raise UserError(
            f"--eod-token {token!r}: no token of --tokenizer-model {model}; its special tokens are "
            f"{', '.join(repr(names[index]) for index in sorted(encoder.special)[:20])}"
        )
    return Eod(token, index)


def names_of(vocabulary: Mapping[str, int], ids: frozenset[int]) -> dict[int, str]:
    """The strings of ``ids``."""
    return {index: token for token, index in vocabulary.items() if index in ids}


def found(last: Counter[int], encoder: Encoder, expected: Eod | None, where: str) -> tuple[Eod | None, bool]:
    """The end-of-document token of a corpus, and whether it ends the documents, from how often each id is the last.

    If a special token ends every document it is that one, whichever the tokenizer names; else it is ``expected``.

    Raises:
        UserError: it ends some documents and not others.
    """
    documents = last.total()
    index, count = last.most_common(1)[0]
    if count == documents and index in encoder.special | ({expected.id} if expected else set()):
        names = names_of(encoder.vocabulary, frozenset({index}))
        return Eod(names.get(index, str(index)), index), True
    ended = last[expected.id] if expected else 0
    if ended:
        raise UserError(
            f"{where}: {ended} of {documents} documents end with {expected} and the others do not, so a run could not "
            "tell where a document ends; write the corpus again"
        )
    return expected, False
