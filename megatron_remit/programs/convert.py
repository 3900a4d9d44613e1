"""Import and export: Hugging Face model folders in, Hugging Face model folders out."""

import argparse
from pathlib import Path

# The converters are imported late: --help need not wait for torch and Megatron.


def import_command() -> None:
    """Parse the command line and import a model. Raises UserError as ``import_hf``."""
    parser = argparse.ArgumentParser(
        description="Convert a Hugging Face model folder into a Megatron checkpoint: %(prog)s --hf DIR --out DIR."
    )
    parser.add_argument("--hf", type=Path, required=True, help="folder with config.json and safetensors files")
    parser.add_argument("--out", type=Path, required=True, help="new folder, to be passed to --load")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it holds a checkpoint")
    options = parser.parse_args()
    from megatron_remit.convert.hf_to_megatron import import_hf

    import_hf(options.hf, options.out, overwrite=options.overwrite)
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
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it holds a checkpoint")
    parser.add_argument("--shard-bytes", type=int, default=5_000_000_000, help="largest safetensors file, bytes")
    options = parser.parse_args()
    from megatron_remit.convert.megatron_to_hf import export_hf

    export_hf(
        options.megatron,
        options.hf_template,
        options.out,
        iteration=options.iteration,
        overwrite=options.overwrite,
        shard_bytes=options.shard_bytes,
    )
    print(f"exported {options.megatron} to {options.out}")
