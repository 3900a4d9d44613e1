"""The commands whose command lines are their own: import, export, preprocess, manifest, plan and compare.

What does the work is imported in each command, after its command line is parsed: --help and a usage error need not wait
for torch, transformers and Megatron. The commands that take Megatron's flags have a module each.
"""

import argparse
import json
from pathlib import Path

from megatron_remit.artifacts import removed_on_signal, write_whole
from megatron_remit.data.corpus_files import check_pair, check_paths, corpus_prefix
from megatron_remit.errors import DOWNLOAD, UserError
from megatron_remit.launch.gpus import DEFAULT_GPU, GPUS, Gpu, gpu


def import_command() -> None:
    """Parse the command line and import a model. Raises UserError as ``import_hf``."""
    parser = argparse.ArgumentParser(
        description="Convert a Hugging Face model folder into a Megatron checkpoint: %(prog)s --hf DIR --out DIR."
    )
    parser.add_argument("--hf", type=Path, required=True, help="folder with config.json and safetensors files")
    parser.add_argument("--out", type=Path, required=True, help="new folder, to be passed to --load")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if an import wrote it")
    parser.add_argument(
        "--dtype",
        choices=("bf16", "fp16", "fp32"),
        help="convert the weights, for folders of several dtypes (default: as they are stored)",
    )
    _add_skip_digests(parser, ", or with their names in the Hugging Face cache")
    options = parser.parse_args()
    from megatron_remit.convert.hf_to_megatron import import_hf

    import_hf(
        options.hf,
        options.out,
        overwrite=options.overwrite,
        dtype=options.dtype,
        skip_digests=options.skip_digests,
    )
    print(f"imported {options.hf} to {options.out}")


def export_command() -> None:
    """Parse the command line and export a checkpoint. Raises UserError as ``export_hf``."""
    parser = argparse.ArgumentParser(
        description="Convert a Megatron checkpoint, imported or trained, into a Hugging Face model folder."
    )
    parser.add_argument("--megatron", type=Path, required=True, help="checkpoint folder (what --save or --load names)")
    parser.add_argument("--iteration", type=int, help="which iteration (default: the latest)")
    parser.add_argument("--hf-template", type=Path, required=True, help="folder with config.json and tokenizer files")
    parser.add_argument("--out", type=Path, required=True, help="new Hugging Face folder")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if an export wrote it")
    parser.add_argument(
        "--shard-bytes", type=int, default=1_000_000_000, help="largest safetensors file, bytes (default: 1000000000)"
    )
    _add_skip_digests(parser)
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="read a checkpoint whose pickles name classes that no checkpoint of a run needs; it can run any code",
    )
    options = parser.parse_args()
    if options.iteration is not None and options.iteration < 0:
        raise UserError(f"--iteration {options.iteration}: expected the step of a checkpoint, 0 or more")
    from megatron_remit.convert.megatron_to_hf import export_hf
    from megatron_remit.trust.pickles import trust_checkpoints

    trust_checkpoints(options.trust_checkpoint)
    export_hf(
        options.megatron,
        options.hf_template,
        options.out,
        iteration=options.iteration,
        overwrite=options.overwrite,
        shard_bytes=options.shard_bytes,
        skip_digests=options.skip_digests,
    )
    print(f"exported {options.megatron} to {options.out}")


def _add_skip_digests(parser: argparse.ArgumentParser, others: str = "") -> None:
    parser.add_argument(
        "--skip-digests",
        action="store_true",
        help=f"do not compare the weights with the digests next to them (remit*.sha256){others}, which reads them once "
        "more",
    )


def preprocess_command() -> None:
    """Parse the command line, write the corpus and print its counts. Raises UserError as ``preprocess``."""
    parser = argparse.ArgumentParser(description="Tokenize text into Megatron's .bin/.idx corpus.")
    parser.add_argument(
        "--input", type=Path, nargs="+", required=True, metavar="FILE", help=".jsonl, .jsonl.gz, .jsonl.zst or .parquet"
    )
    parser.add_argument(
        "--output-prefix", type=corpus_prefix, required=True, help="PREFIX of the .bin, .idx and .json written"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the corpus of that prefix")
    _add_tokenizer(parser)
    parser.add_argument("--json-key", default="text", help="key of a line's text, or its column in a parquet file")
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenize")
    parser.add_argument(
        "--append-eod",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end each document with the end-of-document token",
    )
    options = parser.parse_args()
    # Before the imports, which take seconds.
    check_paths(options.input, options.output_prefix, options.overwrite)
    from megatron_remit.data.preprocess import preprocess

    with removed_on_signal():
        counts = preprocess(
            options.input,
            options.output_prefix,
            options.tokenizer_type,
            options.tokenizer_model,
            options.json_key,
            options.workers,
            options.append_eod,
            options.eod_token,
            options.overwrite,
        )
    print(
        f"{options.output_prefix}: {counts.documents} documents, {counts.tokens} tokens from {counts.bytes} bytes "
        f"in {counts.seconds:.1f} s, {counts.bytes / 1e6 / counts.seconds:.2f} MB/s"
    )


def manifest_command() -> None:
    """Parse the command line, write a corpus' manifest and print what it holds. Raises UserError as ``describe``."""
    parser = argparse.ArgumentParser(
        description="Write the manifest PREFIX.json of a .bin/.idx pair that another tool wrote, such as Megatron's."
    )
    parser.add_argument("--prefix", type=corpus_prefix, required=True, help="PREFIX of the .bin and .idx")
    parser.add_argument("--overwrite", action="store_true", help="replace a PREFIX.json that is there")
    _add_tokenizer(parser)
    options = parser.parse_args()
    check_pair(options.prefix, options.overwrite)
    from megatron_remit.data.describe import describe

    manifest = describe(
        options.prefix, options.tokenizer_type, options.tokenizer_model, options.eod_token, options.overwrite
    )
    end = f"each ended by {manifest.eod}" if manifest.append_eod else "not ended by an end-of-document token"
    print(f"{options.prefix}.json: {manifest.documents} documents, {end}; {manifest.tokens} tokens")


def _add_tokenizer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer-type", choices=("HuggingFaceTokenizer", "SentencePieceTokenizer"), default="HuggingFaceTokenizer"
    )
    parser.add_argument("--tokenizer-model", type=Path, required=True, help="Hugging Face folder or SentencePiece file")
    parser.add_argument(
        "--eod-token", metavar="TEXT", help="the end-of-document token (default: the tokenizer's end-of-sequence token)"
    )


def plan_command() -> None:
    """Parse the command line and print the plan. Raises UserError as ``plan_run``."""
    parser = argparse.ArgumentParser(
        description="Check the settings of a run, and print its length, cost and memory per GPU, without a GPU."
    )
    parser.add_argument("--base-hf", type=Path, required=True, help="Hugging Face folder of the model to train")
    parser.add_argument("--reference-hf", type=Path, help="Hugging Face folder of the RL model")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs of the run, over all nodes")
    parser.add_argument("--gpu", default=DEFAULT_GPU, help=f"kind of GPU: {', '.join(GPUS)} (default: %(default)s)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="GPUs of a node (default: %(default)s)")
    parser.add_argument(
        "--mfu", type=float, default=0.4, help="share of the GPU's peak that the run reaches (default: %(default)s)"
    )
    parser.add_argument(
        "--max-epochs", type=float, default=20.0, help="refuse to read a corpus more often (default: %(default)s)"
    )
    parser.add_argument(
        "--simulate", action="store_true", help="also run a step on fake CUDA tensors (needs a C compiler)"
    )
    parser.add_argument(
        "--search", action="store_true", help="instead of the plan, look for the layouts that fit, best first"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the simulation's or the search's figures")
    parser.add_argument("training", nargs="+", metavar="-- FLAG", help="flags of the training program")
    options = parser.parse_args()
    # Before the imports, which take seconds.
    kind = gpu(options.gpu)
    for flag, count in (("--gpus", options.gpus), ("--gpus-per-node", options.gpus_per_node)):
        if count < 1:
            raise UserError(f"{flag} {count}: expected 1 or more")
    if not options.max_epochs > 0:
        raise UserError(f"--max-epochs {options.max_epochs}: expected a number above 0")
    if options.json is not None and not (options.simulate or options.search):
        raise UserError("--json holds the figures of the simulation or the search; give --simulate or --search too")
    if options.simulate and options.search:
        raise UserError("--simulate with --search: the search prints the command that simulates its best layout")
    for flag, folder in (("--base-hf", options.base_hf), ("--reference-hf", options.reference_hf)):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{flag} {folder}: no such folder; give a Hugging Face model folder ({DOWNLOAD})")
    if options.search:
        _search(options, kind)
        return
    from megatron_remit.launch.plan import Wishes, plan_run

    wishes = Wishes(options.gpu, options.gpus_per_node, options.mfu, options.max_epochs)
    print(plan_run(options.base_hf, options.reference_hf, options.gpus, options.training, wishes), flush=True)
    if options.simulate:
        from megatron_remit.simulate.run import simulate_and_print

        simulate_and_print(options.base_hf, options.reference_hf, options.gpus, options.training, kind, options.json)


def _search(options: argparse.Namespace, kind: Gpu) -> None:
    from megatron_remit.launch.search import search
    from megatron_remit.launch.search_table import describe

    run = options.base_hf, options.reference_hf, options.gpus
    found = search(*run, options.training, kind, options.gpus_per_node)
    print(describe(found, *run, kind), flush=True)
    if options.json is not None:
        figures = {"fitting": [one.as_json() for one in found.fitting], "fallen": dict(found.fallen)}
        write_whole(options.json, json.dumps(figures, indent=1) + "\n")


def compare_command() -> None:
    """Parse the command line and make the comparison. Raises UserError as ``compare``."""
    parser = argparse.ArgumentParser(
        description="Compare models on the same text, and runs by their logs: an HTML page, and a PNG and CSV of every "
        "figure."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for compare.html and figures")
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME=DIR", help="a Hugging Face folder; repeat for each model"
    )
    parser.add_argument("--text", type=Path, nargs="+", default=[], metavar="FILE", help=".jsonl or .jsonl.gz")
    parser.add_argument("--json-key", default="text", help="key of a line's text (default: text)")
    parser.add_argument("--teacher", metavar="NAME", help="the model from which each other's KL divergence is taken")
    parser.add_argument(
        "--heatmap",
        action="append",
        default=[],
        metavar="A:B",
        help="colour tokens white to red by how much surer A is than B (RL:base); may be repeated",
    )
    parser.add_argument(
        "--contrast",
        action="append",
        default=[],
        metavar="A:B",
        help="red where A is surer, blue where B is (RL:SFT); may be repeated",
    )
    parser.add_argument("--max-tokens", type=int, default=1_000_000, help="tokens of text to read (default: 1000000)")
    parser.add_argument("--seq-length", type=int, default=1024, help="tokens a model sees at once (default: 1024)")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="dtype of the weights (default: as they were saved)",
    )
    parser.add_argument(
        "--run", action="append", default=[], metavar="NAME=DIR", help="a run's TensorBoard folder; repeat for each run"
    )
    parser.add_argument(
        "--accuracy",
        action="append",
        default=[],
        metavar="FILE or NAME=FILE.json",
        help="CSV with columns run,tokens,seconds,accuracy, or NAME=FILE.json (docs/compare.md); repeat",
    )
    options = parser.parse_args()
    from megatron_remit.analysis.build import Request, compare

    compare(Request(**vars(options)))
