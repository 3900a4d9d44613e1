"""Convert a Megatron checkpoint, imported or trained, into a Hugging Face model folder."""

import argparse
from pathlib import Path

from megatron_remit.errors import cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
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


if __name__ == "__main__":
    cli(main)
