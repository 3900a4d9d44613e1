"""What is compared: named models with one tokenizer, and texts as one row of tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from megatron_remit.errors import UserError
from megatron_remit.jsonl import blocks, text_of
from megatron_remit.report.score import load_tokenizer, start_token, tokenize
from megatron_remit.tokenizer import fingerprint


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

    def __len__(self) -> int:
        return len(self.starts) - 1


def named_folders(flag: str, values: Iterable[str]) -> dict[str, Path]:
    """``NAME=DIR`` in order. Raises UserError for another form, a name given twice, or no such folder."""
    found: dict[str, Path] = {}
    for value in values:
        name, separator, folder = value.partition("=")
        if not (name and separator and folder):
            raise UserError(f"{flag} {value}: expected NAME=DIR")
        if name in found:
            raise UserError(f"{flag} {value}: the name {name!r} is given twice; each needs its own")
        if not Path(folder).is_dir():
            raise UserError(f"{flag} {value}: {folder} is no folder")
        found[name] = Path(folder)
    return found


def named_pairs(flag: str, values: Iterable[str], models: dict[str, Path]) -> list[tuple[str, str]]:
    """``A:B`` for two of the models. Raises UserError for another form or an unknown name."""
    pairs = []
    for value in values:
        names = value.split(":")
        if len(names) != 2 or names[0] == names[1]:
            raise UserError(f"{flag} {value}: expected A:B, the names of two models")
        for name in names:
            check_name(f"{flag} {value}", name, models)
        pairs.append((names[0], names[1]))
    return pairs


def check_name(flag: str, name: str, models: dict[str, Path]) -> None:
    """Raises UserError if no model has that name."""
    if name not in models:
        raise UserError(f"{flag}: no model {name!r}; --model names {', '.join(models)}")


def shared_tokenizer(models: dict[str, Path]) -> PreTrainedTokenizerBase:
    """The tokenizer of all models. Raises UserError if two models differ in a token or its id."""
    first, tokenizer, expected = None, None, None
    for name, folder in models.items():
        own = load_tokenizer(folder)
        found = fingerprint(own.get_vocab())
        if tokenizer is None:
            first, tokenizer, expected = name, own, found
        elif found != expected:
            raise UserError(
                f"--model {name}={folder}: its tokenizer is not the one of {first!r}; log-probabilities of tokens "
                "compare over one tokenizer only"
            )
    return tokenizer


def read_texts(paths: list[Path], json_key: str, max_tokens: int, tokenizer: PreTrainedTokenizerBase,
               folder: Path) -> Texts:
    """The texts of JSONL files in their order, whole, until ``max_tokens`` tokens are reached (the last one is cut).

    Raises:
        UserError: names the file and line of what is not a text, or says that there is no token at all.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"--text {path}: no such file")
    if max_tokens < 1:
        raise UserError(f"--max-tokens {max_tokens}: expected at least 1")
    ids: list[np.ndarray] = []
    pieces: list[str] = []
    starts = [0]
    with tqdm(total=max_tokens, desc="reading", unit="token", unit_scale=True) as progress:
        for block in blocks(paths):
            rows = [{"text": text_of(place, line, json_key)} for place, line in block.lines if line.strip()]
            rows = [row for row in rows if row["text"]]
            if not rows:
                continue
            for own_ids, own_pieces in zip(*tokenize(tokenizer, rows), strict=True):
                room = max_tokens - starts[-1]
                if own_ids and room:
                    ids.append(np.array(own_ids[:room], dtype=np.int64))
                    pieces += own_pieces[:room]
                    starts.append(starts[-1] + len(ids[-1]))
                    progress.update(len(ids[-1]))
            if starts[-1] == max_tokens:
                break
    if not ids:
        raise UserError(f"--text {' '.join(map(str, paths))}: no text with a token in it")
    return Texts(np.concatenate(ids), pieces, starts, start_token(tokenizer, folder))
