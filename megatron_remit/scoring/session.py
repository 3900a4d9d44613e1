"""The stores of a training or scoring run: opened from its flags, checked against them, closed at its end."""

import argparse
import copy
import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from megatron.core import mpu

from megatron_remit.data.packed import documents_apart
from megatron_remit.errors import UserError
from megatron_remit.reference.checkpoint import checkpoint_folder, saved_arguments
from megatron_remit.reference.fingerprint import legacy_fingerprint, reference_fingerprint, unseen_by_legacy
from megatron_remit.reference.precision import compute_dtype
from megatron_remit.score_store.manifest import (
    MANIFEST,
    Identity,
    Manifest,
    check_identity,
    create_manifest,
    read_manifest,
)
from megatron_remit.score_store.reader import ScoreStore
from megatron_remit.score_store.writer import StoreWriter


@dataclass
class Session:
    """What this process holds of its run's stores."""

    stores: dict[str, ScoreStore] = field(default_factory=dict)
    """By the batch column that the store serves."""
    writer: StoreWriter | None = None


_session = Session()


def open_store(args: argparse.Namespace, create: bool) -> ScoreStore:
    """Open ``--score-store`` and check that its rows are those that this run's reference would give.

    Without ``--reference-load`` the run takes the reference that the store names. With ``--score-wait`` it waits for a
    store that is not there yet. With ``create`` it makes one.

    Raises:
        UserError: no store, another reference, tokenizer, vocabulary, sequence length, document masks or dtype, or a
            shard that is missing, damaged or of another store.
    """
    expected = expected_identity(args)
    if create:
        identity = Identity(**{"dtype": "float16"} | expected)
        manifest = create_manifest(args.score_store, Manifest(identity, job_description(args)))
    else:
        _wait_for_manifest(args.score_store, args.score_wait)
        manifest = read_manifest(args.score_store)
    if expected.get("reference", manifest.identity.reference) != manifest.identity.reference:
        expected["reference"] = _named_by_store(args, manifest.identity.reference, expected["reference"])
    check_identity(args.score_store, manifest.identity, expected)
    _session.stores["reference_nll"] = ScoreStore(args.score_store)
    return _session.stores["reference_nll"]


def makes_store(args: argparse.Namespace) -> bool:
    """Whether this run is to make ``--score-store``: once its corpora stand, so that no empty one stays behind."""
    return args.score_store_write and not (args.score_store / MANIFEST).exists()


def open_base_store(args: argparse.Namespace) -> ScoreStore:
    """Open ``--score-store-base``, after :func:`open_store`, and check that its rows are those of this run's data.

    Its model is the one that the store names; with ``--reference-base-load`` it must be that one. The stores may hold
    NLLs in different dtypes.

    Raises:
        UserError: as :func:`open_store`, or the store is of the reference itself.
    """
    folder, flag = args.score_store_base, "--score-store-base"
    own = copy.copy(args)
    own.reference_load, own.score_dtype = args.reference_base_load, None
    expected = expected_identity(own)
    _wait_for_manifest(folder, args.score_wait)
    identity = read_manifest(folder).identity
    check_identity(folder, identity, expected, flag)
    store = _session.stores.get("reference_nll")
    reference = expected_identity(args).get("reference") if store is None else store.manifest.identity.reference
    if identity.reference == reference:
        raise UserError(
            f"{flag} {folder}: its NLLs are those of the reference itself (model {identity.reference[:12]}), so the "
            "two would never differ; give a store of the model that the reference was tuned from"
        )
    _session.stores["base_nll"] = ScoreStore(folder)
    return _session.stores["base_nll"]


def expected_identity(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of the identity that the run's flags determine."""
    expected = {
        "tokenizer": args.remit_tokenizer_fingerprint,
        "vocabulary": args.remit_vocab_size,
        "sequence_length": args.seq_length,
        **documents_apart(args),
        "compute_dtype": compute_dtype(args),
    }
    if args.score_dtype is not None:
        expected["dtype"] = args.score_dtype
    if args.reference_load is not None:
        folder = checkpoint_folder(args.reference_load)
        expected["reference"] = reference_fingerprint(folder, saved_arguments(folder))
    return expected


def _named_by_store(args: argparse.Namespace, found: str, own: str) -> str:
    """The run's reference, ``own``, by the fingerprint that the store must hold: ``found`` if it is the legacy one.

    Raises:
        UserError: it is, but the legacy fingerprint does not cover all that this reference is.
    """
    folder = checkpoint_folder(args.reference_load)
    saved = saved_arguments(folder)
    if found != legacy_fingerprint(folder, saved):
        return own
    unseen = ", ".join(f"{name} = {value}" for name, value in unseen_by_legacy(saved).items())
    if unseen:
        raise UserError(
            f"--score-store {args.score_store}: its fingerprint of the reference is of the legacy form, which does not "
            f"cover {unseen} of --reference-load {args.reference_load}, so its scores may be another model's; "
            "score the corpus again into a new store"
        )
    return found


def job_description(args: argparse.Namespace) -> dict[str, Any]:
    """How this run scores; for ``tools/score_store.py info``."""
    return {
        "reference": str(args.reference_load),
        "micro_batch_size": args.reference_micro_batch_size,
        "tensor_parallel": args.tensor_model_parallel_size,
        "pipeline_parallel": args.pipeline_model_parallel_size,
        "context_parallel": args.context_parallel_size,
        "transformer_impl": args.transformer_impl,
        "torch": torch.__version__,
        "megatron_core": version("megatron-core"),
        "python": platform.python_version(),
    }


def _wait_for_manifest(folder: Path, seconds: float) -> None:
    path = folder / MANIFEST
    deadline = time.monotonic() + seconds
    if path.exists() or not seconds:
        return
    print(f"> {path} is not there yet: waiting at most {seconds:g} s", flush=True)
    while not path.exists():
        if time.monotonic() >= deadline:
            raise UserError(f"{path}: still not there after {seconds:g} s; start tools/score_corpus.py first")
        time.sleep(0.5)


def current_stores() -> dict[str, ScoreStore]:
    """The stores that serve this process's training samples, by the batch column that each fills."""
    return _session.stores


def start_writer(args: argparse.Namespace) -> StoreWriter | None:
    """The writer of this rank, made at the first call; None on a rank that writes no scores."""
    if _session.writer is None and _writes_scores():
        _session.writer = StoreWriter(args.score_store, job_description(args), args.score_shard_seconds)
    return _session.writer


def _writes_scores() -> bool:
    """Whether this rank writes the rows of its model replica.

    It does on the last pipeline stage, on tensor-parallel rank 0 and context-parallel rank 0.
    """
    return (
        mpu.is_pipeline_last_stage(ignore_virtual=True)
        and mpu.get_tensor_model_parallel_rank() == 0
        and mpu.get_context_parallel_rank() == 0
    )


def close() -> None:
    """Write the rows that wait, at the end of the run. Raises UserError if they cannot be written."""
    writer, _session.writer = _session.writer, None
    if writer is not None:
        writer.close()
