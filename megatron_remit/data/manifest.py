"""The manifest PREFIX.json of a corpus: what it was made from, written with it and read wherever it is used."""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from megatron_remit.data.tokenizer import folder_fingerprint
from megatron_remit.errors import UserError


@dataclass(frozen=True)
class Counts:
    """What was written: ``bytes`` are those of the input lines, uncompressed."""

    documents: int
    tokens: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Manifest:
    """What a corpus was made from and what is in it."""

    sources: list[str]
    tokenizer_type: str
    tokenizer_fingerprint: str
    vocabulary_size: int
    append_eod: bool
    counts: Counts

    def write(self, path: Path) -> None:
        """Write it as one JSON object, the counts among its keys. Raises OSError."""
        content = asdict(self)
        counts = content.pop("counts")
        content |= {**counts, "megatron_core": version("megatron-core")}
        path.write_text(json.dumps(content, indent=2) + "\n")


def corpus_prefixes(data_path: list[str]) -> list[str]:
    """The prefixes in a value of ``--data-path``: either prefixes only or ``weight prefix weight prefix ...``."""
    return [word for word in data_path if not _is_weight(word)]


def _is_weight(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def check_manifest(prefix: str, tokenizer: Path) -> int:
    """The number of tokens in the corpus ``prefix``, which was written with the tokenizer in folder ``tokenizer``.

    Only the manifest is read, so it takes no time at any size.

    Raises:
        UserError: a file is missing, or the corpus was written with another tokenizer.
    """
    for suffix in (".bin", ".idx"):
        if not Path(prefix + suffix).is_file():
            raise UserError(f"{prefix}{suffix}: no such file; tools/preprocess_corpus.py --output-prefix writes it")
    path, made_with, tokens = _read(prefix)
    expected = folder_fingerprint(tokenizer)
    if expected is None:
        raise UserError(f"{tokenizer}: holds no tokenizer; expected a Hugging Face folder with the base model's own")
    if made_with != expected:
        raise UserError(
            f"{path}: written with another tokenizer (fingerprint {made_with[:12]}) than {tokenizer} "
            f"({expected[:12]}); run tools/preprocess_corpus.py with --tokenizer-model {tokenizer}"
        )
    return tokens


def _read(prefix: str) -> tuple[Path, str, int]:
    """The manifest's path, and of its content the tokenizer's fingerprint and the number of tokens."""
    path = Path(prefix + ".json")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return path, manifest["tokenizer_fingerprint"], int(manifest["tokens"])
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; it says which tokenizer the corpus was written with: copy it from where "
            "tools/preprocess_corpus.py ran, or run that again"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest of tools/preprocess_corpus.py ({error!r}); run it again") from None
