"""The manifest PREFIX.json of a corpus: what it was made from, written with it and read wherever it is used."""

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megatron_remit.data.corpus_files import corpus_file
from megatron_remit.data.eod import Eod, RunTokenizer
from megatron_remit.errors import UserError

_WRITE_IT = "`megatron-remit manifest --prefix {prefix} --tokenizer-model DIR` writes one for the corpus that is there"


@dataclass(frozen=True)
class Manifest:
    """What a corpus was made from and what is in it."""

    tokenizer_fingerprint: str
    tokens: int
    documents: int | None = None
    vocabulary_size: int | None = None
    append_eod: bool | None = None
    """Whether each document ends with ``eod``. Manifests of version 0.1 say so without naming the token."""
    eod: Eod | None = None
    """The tokenizer's end-of-document token, or the one that was asked for; None: it has none, or it is not known."""
    tokenizer_type: str | None = None
    sources: list[str] = field(default_factory=list)

    def write(self, path: Path, **more: float) -> None:
        """Write it as one JSON object with ``more`` of the same kind. Raises OSError."""
        content = {**asdict(self), **more, "megatron_core": version("megatron-core")}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, prefix: str | Path) -> "Manifest":
        """That of the corpus ``prefix``. Raises UserError if it is missing or is none."""
        path = corpus_file(prefix, ".json")
        try:
            content = _is(dict, json.loads(path.read_text(encoding="utf-8")))
            eod = content.get("eod")
            return cls(
                tokenizer_fingerprint=_is(str, content["tokenizer_fingerprint"]),
                tokens=_is(int, content["tokens"]),
                documents=content.get("documents"),
                vocabulary_size=content.get("vocabulary_size"),
                append_eod=content.get("append_eod"),
                eod=None if eod is None else Eod(_is(str, eod["token"]), _is(int, eod["id"])),
                tokenizer_type=content.get("tokenizer_type"),
                sources=content.get("sources", []),
            )
        except FileNotFoundError:
            raise UserError(
                f"{path}: no such file; it says which tokenizer the corpus was written with: copy it from where "
                f"tools/preprocess_corpus.py ran, or {_WRITE_IT.format(prefix=prefix)}"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: not a manifest ({error!r}); {_WRITE_IT.format(prefix=prefix)}") from None


def _is(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def has_manifest(prefix: str) -> bool:
    """Whether PREFIX.json is there, and is not another tool's description of the corpus. A damaged one counts."""
    path = corpus_file(prefix, ".json")
    if not path.is_file():
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return True
    return not isinstance(content, dict) or "tokenizer_fingerprint" in content


def check_manifest(prefix: str, tokenizer: RunTokenizer) -> Manifest:
    """The manifest of the corpus ``prefix``, which a run with ``tokenizer`` can read. Takes no time at any size.

    Raises:
        UserError: a file is missing, or the corpus was written with another tokenizer, or with another token at the
            end of its documents.
    """
    for suffix in (".bin", ".idx"):
        path = corpus_file(prefix, suffix)
        if not path.is_file():
            raise UserError(f"{path}: no such file; tools/preprocess_corpus.py --output-prefix writes it")
    manifest, path = Manifest.read(prefix), corpus_file(prefix, ".json")
    made_with, expected = manifest.tokenizer_fingerprint, tokenizer.fingerprint
    if expected is not None and made_with != expected:
        raise UserError(
            f"{path}: written with another tokenizer (fingerprint {made_with[:12]}) than {tokenizer.name} "
            f"({expected[:12]}); run tools/preprocess_corpus.py with --tokenizer-model {tokenizer.name}"
        )
    eod, wanted = manifest.eod, tokenizer.eod
    if manifest.append_eod and eod is not None and wanted is not None and eod.id != wanted.id:
        raise UserError(
            f"{path}: the documents end with {eod}, and {tokenizer.name} has {wanted} for it; run "
            f"tools/preprocess_corpus.py with --tokenizer-model {tokenizer.name} or --eod-token {wanted.token!r}"
        )
    return manifest


def what_is_unknown(prefix: str, manifest: Manifest | None) -> str | None:
    """One line on what nobody can check of a corpus: all without a manifest, the last token with one of version 0.1."""
    if manifest is None:
        return f"{prefix}: has no manifest, so its tokenizer is not checked; {_WRITE_IT.format(prefix=prefix)}"
    if manifest.append_eod and manifest.eod is None:
        return f"{corpus_file(prefix, '.json')}: does not name the token that ends the documents; it is not checked"
    return None
