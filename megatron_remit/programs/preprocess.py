"""Tokenize JSONL text into Megatron's .bin/.idx corpus."""

import argparse
from pathlib import Path


def main() -> None:
    """Parse the command line, write the corpus and print its counts. Raises UserError as ``preprocess``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="FILE", help=".jsonl or .jsonl.gz")
    parser.add_argument("--output-prefix", type=Path, required=True, help="PREFIX of the .bin, .idx and .json written")
    parser.add_argument(
        "--tokenizer-type", choices=("HuggingFaceTokenizer", "SentencePieceTokenizer"), default="HuggingFaceTokenizer"
    )
    parser.add_argument("--tokenizer-model", type=Path, required=True, help="Hugging Face folder or SentencePiece file")
    parser.add_argument("--json-key", default="text", help="key of a line's text")
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenize")
    parser.add_argument(
        "--append-eod",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end each document with the end-of-sequence token",
    )
    options = parser.parse_args()
    # Imported late: --help need not wait for transformers and Megatron.
    from megatron_remit.data.preprocess import preprocess

    counts = preprocess(
        options.input,
        options.output_prefix,
        options.tokenizer_type,
        options.tokenizer_model,
        options.json_key,
        options.workers,
        options.append_eod,
    )
    print(
        f"{options.output_prefix}: {counts.documents} documents, {counts.tokens} tokens from {counts.bytes} bytes "
        f"in {counts.seconds:.1f} s, {counts.bytes / 1e6 / counts.seconds:.2f} MB/s"
    )
