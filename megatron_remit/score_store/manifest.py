"""What the NLLs of a store depend on, other than the tokens. It is written once, as ``manifest.json``."""

import dataclasses
import hashlib
import json
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_remit.artifacts import unwritable
from megatron_remit.errors import UserError
from megatron_remit.score_store.files import new_file

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Identity:
    """Two stores of one identity hold interchangeable rows: a row's NLLs follow from its tokens and this."""

    reference: str
    """Fingerprint of the reference checkpoint (:mod:`megatron_remit.reference.fingerprint`)."""
    tokenizer: str | None
    """Fingerprint of the policy's tokenizer, which wrote the tokens; None for one without token strings
    (NullTokenizer)."""
    vocabulary: int
    """The policy's tokens, without padding rows. The softmax ran over those of them that the reference has a row for
    too; how many rows it has belongs to its fingerprint."""
    sequence_length: int
    reset_attention_mask: bool
    """Whether attention stops at document borders."""
    reset_position_ids: bool
    """Whether positions start anew at document borders."""
    compute_dtype: str
    """The dtype in which the reference ran: float32, bfloat16 or float16; with ``--reference-fp8`` the fp8 format and
    its recipe follow."""
    dtype: str
    """The dtype in which NLLs are stored: float16 or float32."""

    def digest(self) -> str:
        """16 hexadecimal digits that every shard of the store carries."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


# What a difference means, and what to do about it, by field.
_ADVICE = {
    "reference": ("reference", "--reference-load names another model; give the store of this reference"),
    "tokenizer": ("tokenizer", "its token ids mean other text; score the corpus with this tokenizer"),
    "vocabulary": ("vocabulary size", "use a store of the same vocabulary"),
    "sequence_length": ("sequence length", "rows are whole sequences: score the corpus with this --seq-length"),
    "reset_attention_mask": ("--reset-attention-mask", "give both runs the same document masks"),
    "reset_position_ids": ("--reset-position-ids", "give both runs the same document masks"),
    "compute_dtype": ("compute dtype", "give both runs the same of --bf16, --fp16 or neither, and of --reference-fp8"),
    "dtype": ("dtype of the stored NLLs", "leave --score-dtype out, or write another store"),
}


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``: the identity, and which job made the store."""

    identity: Identity
    created_by: dict[str, Any]
    """That job's reference folder, micro-batch, layout and versions. Nothing compares them."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the store at ``folder``.

    Raises:
        UserError: there is no store, or its manifest is damaged or of another format.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"]
        if found != FORMAT:
            raise UserError(f"{path}: store format {found}, this program reads {FORMAT}")
        identity = Identity(**content["identity"])
        manifest = Manifest(identity, content["created_by"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, so this is no score store; tools/score_corpus.py makes one") from None
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: cannot be read ({what}); restore it or score again") from None
    if content.get("digest") != identity.digest():
        raise UserError(f"{path}: its contents do not fit its digest, so it was changed; restore it or score again")
    return manifest


def check_free(folder: Path) -> None:
    """Whether ``folder`` may be filled as a store: it is one, or empty, or not there.

    Raises:
        UserError: it holds other things, which a store would lie among.
    """
    there = sorted(entry.name for entry in folder.iterdir() if entry.name[0] != ".") if folder.is_dir() else []
    # Looked at last: another job may make the store meanwhile.
    if there and not (folder / MANIFEST).exists():
        raise UserError(
            f"--score-store {folder}: holds {there[0]} and no {MANIFEST}, so it is no score store; give a new "
            "folder, or an empty one"
        )


def create_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Make a store at ``folder``, or return the manifest of the one that another job made first.

    Raises:
        UserError: the manifest cannot be written, or that of the other job is damaged or of another format.
    """
    with unwritable(f"--score-store {folder}: cannot be made", "give a folder that this user may write"):
        folder.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "digest": manifest.identity.digest(), **asdict(manifest)}
    candidate = folder / f".{MANIFEST}.{uuid.uuid4().hex}.tmp"
    try:
        with new_file(candidate) as file:
            file.write(json.dumps(content, indent=2).encode())
        try:
            # Unlike a rename, a link fails where the name exists: of several jobs one makes the store.
            os.link(candidate, folder / MANIFEST)
        except FileExistsError:
            pass
        except OSError:
            if not (folder / MANIFEST).exists():  # a file system without links
                os.replace(candidate, folder / MANIFEST)
    finally:
        candidate.unlink(missing_ok=True)
    return read_manifest(folder)


def check_identity(folder: Path, found: Identity, expected: dict[str, Any], flag: str = "--score-store") -> None:
    """Compare the fields that a run knows with those of the store that ``flag`` named.

    Raises:
        UserError: names the store, the field, both values and what to do.
    """
    for field in dataclasses.fields(Identity):
        if field.name not in expected:
            continue
        stored, wanted = getattr(found, field.name), expected[field.name]
        if stored != wanted:
            what, advice = _ADVICE[field.name]
            raise UserError(
                f"{flag} {folder}: written for another {what}: found {_short(stored)}, expected "
                f"{_short(wanted)}; {advice}"
            )


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) and len(value) == 64 else value
