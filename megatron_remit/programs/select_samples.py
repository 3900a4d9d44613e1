"""Keep the documents of a corpus that a large model prefers most over a small one (MiniPLM), from two score stores.

The command line is a training command's data flags and the two stores.
"""

import argparse
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy

from megatron_remit.arguments import add_remit_arguments
from megatron_remit.artifacts import write_whole
from megatron_remit.data.datasets import FixedRowsDataset, build_datasets
from megatron_remit.data.manifest import Manifest, has_manifest
from megatron_remit.data.packed import documents_apart
from megatron_remit.errors import UserError
from megatron_remit.programs.start import check, parse_arguments
from megatron_remit.score_store.manifest import check_identity
from megatron_remit.score_store.reader import ScoreStore
from megatron_remit.selection.corpus import ranked, threshold, write_selection
from megatron_remit.selection.documents import position, write_differences, writing


def main() -> None:
    """Write the corpus of the documents that the large model prefers most. Raises UserError on bad input."""
    args = parse_arguments(add_arguments=_add_arguments)
    _check(args)
    check(args)
    large, small = ScoreStore(args.store_large), ScoreStore(args.store_small)
    _check_stores(args, large, small)
    dataset, *_ = build_datasets((1, 0, 0), lambda: True)
    if not isinstance(dataset, FixedRowsDataset) or len(dataset.indices) != len(dataset.dataset.sequence_lengths):
        raise UserError("the selection is made over one whole corpus: give one --data-path and --split 100,0,0")
    corpus = dataset.dataset
    if len(corpus.document_indices) - 1 != len(corpus.sequence_lengths):
        raise UserError(f"{args.data_path[0]}: its documents have several parts; tools/preprocess_corpus.py writes one")
    scores = args.out.with_name(args.out.name + ".scores.npy")
    job = _job(args, large, small)
    _refuse_foreign_files(args.out, scores, job)
    write_differences(dataset, large, small, scores, job)
    score_D = numpy.load(scores, mmap_mode="r")
    known = int(numpy.count_nonzero(~numpy.isnan(score_D)))
    if known == 0:
        raise UserError(f"{args.data_path[0]}: no document ends inside a row; the corpus is shorter than --seq-length")
    ranked_D = ranked(score_D, corpus.sequence_lengths, args.per_token)
    cut = threshold(ranked_D, max(1, round(args.keep_ratio * known)))
    with writing(args.out):
        shares = write_selection(corpus, ranked_D, cut, args.out)
    stores = {name: asdict(store.manifest.identity) for name, store in (("large", large), ("small", small))}
    content = {
        "rule": "documents are kept whose score lies above the threshold, the first `ties` of those equal to it, and "
        "those without a score; scores.npy holds log p_large - log p_small of each document, nats",
        "ranked by": "score / tokens" if args.per_token else "score",
        "keep ratio": args.keep_ratio,
        "threshold": cut.value,
        "ties": cut.ties,
        "corpus": str(args.data_path[0]),
        "row seed": args.row_seed,
        "stores": stores,
        "scores": scores.name,
        **shares,
        **_manifest(args, shares),
    }
    with writing(args.out):
        write_whole(args.out.with_name(args.out.name + ".json"), json.dumps(content, indent=2) + "\n")
    for fate, share in shares.items():
        print(f"{fate}: {share['documents']} documents, {share['tokens']} tokens")


def _manifest(args: argparse.Namespace, shares: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the selection's manifest says as that of any corpus does."""
    prefix = args.data_path[0]
    if has_manifest(prefix):
        source = Manifest.read(prefix)
    elif args.remit_tokenizer_fingerprint is None:
        return {}
    else:
        source = Manifest(args.remit_tokenizer_fingerprint, 0, vocabulary_size=args.remit_vocab_size)
    kept = [share for fate, share in shares.items() if fate != "dropped"]
    counts = {name: sum(share[name] for share in kept) for name in ("tokens", "documents")}
    return asdict(replace(source, sources=[str(prefix)], **counts))


def _add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser = add_remit_arguments(parser)
    group = parser.add_argument_group("selection")
    group.add_argument("--store-large", type=Path, required=True, metavar="DIR", help="score store of the large model")
    group.add_argument("--store-small", type=Path, required=True, metavar="DIR", help="score store of the small model")
    group.add_argument("--keep-ratio", type=float, default=0.8, metavar="R", help="share of documents, in (0, 1]")
    group.add_argument(
        "--per-token",
        action="store_true",
        help="rank by the difference per token, not by its sum, which favours long documents",
    )
    group.add_argument("--out", type=Path, required=True, metavar="PREFIX", help="of the .bin, .idx and .json written")
    return parser


def _check(args: argparse.Namespace) -> None:
    if not 0.0 < args.keep_ratio <= 1.0:
        raise UserError(f"--keep-ratio {args.keep_ratio}: expected a number in (0, 1]; the paper keeps 0.8")
    if args.row_seed is None:
        raise UserError("--row-seed is not set; give that of tools/score_corpus.py: it fixes which rows the corpus has")
    if not args.data_path or len(args.data_path) != 1:
        found = "not set" if not args.data_path else " ".join(args.data_path)
        raise UserError(f"--data-path is {found}: the selection is made over one corpus; give its one prefix")
    if not args.out.name:
        raise UserError(f"--out {args.out}: is a folder; give the prefix of the files, such as {args.out / 'selected'}")
    # Written last, so it marks a selection that is done.
    manifest = args.out.with_name(args.out.name + ".json")
    if manifest.exists():
        raise UserError(f"--out {args.out}: {manifest} exists; choose another prefix or remove it")
    if not args.out.parent.is_dir():
        raise UserError(f"--out {args.out}: the folder {args.out.parent} does not exist; create it or choose another")


def _check_stores(args: argparse.Namespace, large: ScoreStore, small: ScoreStore) -> None:
    """Both hold the rows of this corpus, of two models."""
    for flag, store in (("--store-large", large), ("--store-small", small)):
        check_identity(
            store.folder,
            store.manifest.identity,
            {
                "tokenizer": args.remit_tokenizer_fingerprint,
                "vocabulary": args.remit_vocab_size,
                "sequence_length": args.seq_length,
                **documents_apart(args),
            },
            flag,
        )
    if large.manifest.identity.reference == small.manifest.identity.reference:
        raise UserError(
            f"--store-large {large.folder} and --store-small {small.folder} are of one model; give those of two"
        )


def _refuse_foreign_files(out: Path, scores: Path, job: str) -> None:
    """What bears the names of the output may be written over only if a stopped run of this very selection left it."""
    for path in (out.with_name(out.name + ".bin"), out.with_name(out.name + ".idx"), scores):
        if path.exists() and position(scores, job) is None:
            raise UserError(
                f"--out {out}: {path} exists, and no note says that a stopped run of this selection left it; choose "
                "another prefix or remove it"
            )


def _job(args: argparse.Namespace, large: ScoreStore, small: ScoreStore) -> str:
    """What the scores depend on. A corpus that was written anew is another one, though it has the same name."""
    files = [Path(args.data_path[0] + suffix).stat() for suffix in (".bin", ".idx")]
    parts = (
        args.data_path[0],
        [(file.st_size, file.st_mtime_ns) for file in files],
        args.row_seed,
        args.seq_length,
        large.manifest.identity.digest(),
        small.manifest.identity.digest(),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()
