"""Whether a corpus belongs to a tokenizer, from the corpus tool's manifest: no time at any size."""

import json
from pathlib import Path

from megatron_remit.data.tokenizer import folder_fingerprint
from megatron_remit.errors import UserError


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

    Raises:
        UserError: a file is missing, or the corpus was written with another tokenizer.
    """
    for suffix in (".bin", ".idx"):
        if not Path(prefix + suffix).is_file():
            raise UserError(f"{prefix}{suffix}: no such file; tools/preprocess_corpus.py --output-prefix writes it")
    path = Path(prefix + ".json")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        made_with, tokens = manifest["tokenizer_fingerprint"], int(manifest["tokens"])
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; it says which tokenizer the corpus was written with: copy it from where "
            "tools/preprocess_corpus.py ran, or run that again"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest of tools/preprocess_corpus.py ({error!r}); run it again") from None
    expected = folder_fingerprint(tokenizer)
    if expected is None:
        raise UserError(f"{tokenizer}: holds no tokenizer; expected a Hugging Face folder with the base model's own")
    if made_with != expected:
        raise UserError(
            f"{path}: written with another tokenizer (fingerprint {made_with[:12]}) than {tokenizer} "
            f"({expected[:12]}); run tools/preprocess_corpus.py with --tokenizer-model {tokenizer}"
        )
    return tokens
