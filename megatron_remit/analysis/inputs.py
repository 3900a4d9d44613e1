"""What is compared: named models with one tokenizer, and texts one after another as one series of tokens.

Shape suffix: N tokens of all texts.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from megatron_remit.analysis.models import load_tokenizer, start_token, tokenize
from megatron_remit.data.documents import blocks
from megatron_remit.data.tokenizer import fingerprint
from megatron_remit.errors import DOWNLOAD, UserError

# A name stands in file names and in legends, where matplotlib reads $...$ as mathematics and drops what begins with _.
NAME = re.compile(r"[^\W_][\w.+ -]{0,59}")
# Texts over which the tokenizers are compared beyond their vocabularies.
COMPARED_TEXTS = 100


@dataclass(frozen=True)
class Texts:
    """The texts one after another."""

    ids_N: np.ndarray
    """Token ids of all texts, int64."""
    pieces: list[str]
    """The slice of its text that each token stands for."""
    starts: list[int]
    """Where each text begins in ``ids_N``, and the number of tokens at the end."""
    start_token: int
    """From which a text's first token is predicted."""

    @classmethod
    def of(
        cls, ids: Sequence[Sequence[int] | np.ndarray], start_token: int, pieces: Iterable[list[str]] = ()
    ) -> "Texts":
        """The token ids of each text, one after another; without ``pieces`` the texts can be scored, not shown."""
        starts = np.cumsum([0, *map(len, ids)]).tolist()
        ids_N = np.concatenate([np.empty(0, np.int64), *(np.asarray(one, np.int64) for one in ids)])
        return cls(ids_N, [piece for one in pieces for piece in one], starts, start_token)

    def __len__(self) -> int:
        return len(self.starts) - 1


def named_folders(flag: str, values: Iterable[str]) -> dict[str, Path]:
    """``NAME=DIR`` in order. Raises UserError for another form, a bad name or one given twice, or no such folder."""
    found: dict[str, Path] = {}
    for value in values:
        name, separator, folder = value.partition("=")
        if not (name and separator and folder):
            raise UserError(f"{flag} {value}: expected NAME=DIR")
        check_form(f"{flag} {value}", name)
        if name in found:
            raise UserError(f"{flag} {value}: the name {name!r} is given twice; each needs its own")
        if not Path(folder).is_dir():
            raise UserError(f"{flag} {value}: {folder} is no folder; {DOWNLOAD}")
        found[name] = Path(folder)
    return found


def check_form(place: str, name: str) -> None:
    """Raises UserError, starting with ``place``, if a model or run cannot have that name."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"{place}: the name {name!r} does not do: expected a letter or digit, then letters, digits, spaces and any "
            "of . _ + -, at most 60 in all"
        )


def named_pairs(flag: str, values: Iterable[str], models: dict[str, Path]) -> list[tuple[str, str]]:
    """``A:B`` for two of the models. Raises UserError for another form, an unknown name, or files of one name."""
    pairs: list[tuple[str, str]] = []
    for value in values:
        names = value.split(":")
        if len(names) != 2 or names[0] == names[1]:
            raise UserError(f"{flag} {value}: expected A:B, the names of two models")
        for name in names:
            check_name(f"{flag} {value}", name, models)
        if "-".join(names) in ["-".join(pair) for pair in pairs]:
            raise UserError(f"{flag} {value}: {'-'.join(names)} names another pair's files already; rename a model")
        pairs.append((names[0], names[1]))
    return pairs


def check_name(flag: str, name: str, models: dict[str, Path]) -> None:
    """Raises UserError if no model has that name."""
    if name not in models:
        raise UserError(f"{flag}: no model {name!r}; --model names {', '.join(models)}")


def check_tokenizers(models: dict[str, Path], texts: Texts) -> None:
    """Raises UserError if two models differ in a token or its id, or split the first texts differently.

    Vocabularies alone do not decide it: merges and normalisation split text as well.
    """
    compared = range(min(COMPARED_TEXTS, len(texts)))
    rows = [{"text": "".join(texts.pieces[texts.starts[i] : texts.starts[i + 1]])} for i in compared]
    first, expected = None, None
    for name, folder in models.items():
        tokenizer = load_tokenizer(folder)
        found = (fingerprint(tokenizer.get_vocab()), [tokenize(tokenizer, [row])[0] for row in rows])
        if expected is None:
            first, expected = name, found
        elif found != expected:
            differs = "another vocabulary" if found[0] != expected[0] else "it splits the texts into other tokens"
            raise UserError(
                f"--model {name}={folder}: its tokenizer is not the one of {first!r} ({differs}); log-probabilities of "
                "tokens compare over one tokenizer only"
            )


def read_texts(paths: list[Path], json_key: str, max_tokens: int, folder: Path) -> Texts:
    """The texts of JSONL files in their order, whole, until ``max_tokens`` tokens are reached (the last one is cut).

    ``folder`` holds the tokenizer. A text is tokenized whole before the cut: where it is cut first, tokenizers may
    split what stands ahead of the cut otherwise.

    Raises:
        UserError: names the file and line of what is not a text, or says that there is no token at all.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"--text {path}: no such file")
    if max_tokens < 1:
        raise UserError(f"--max-tokens {max_tokens}: expected at least 1")
    tokenizer = load_tokenizer(folder)
    ids: list[np.ndarray] = []
    pieces: list[list[str]] = []
    room = max_tokens
    with tqdm(total=max_tokens, desc="reading", unit="token", unit_scale=True) as progress:
        for block in blocks(paths, json_key):
            rows = [{"text": text} for _, text in block.texts(json_key) if text]
            if not rows:
                continue
            for own_ids, own_pieces in zip(*tokenize(tokenizer, rows), strict=True):
                if own_ids and room:
                    ids.append(np.array(own_ids[:room], dtype=np.int64))
                    pieces.append(own_pieces[:room])
                    room -= len(ids[-1])
                    progress.update(len(ids[-1]))
            if not room:
                break
    if not ids:
        raise UserError(f"--text {' '.join(map(str, paths))}: no text with a token in it")
    return Texts.of(ids, start_token(tokenizer, folder), pieces)
