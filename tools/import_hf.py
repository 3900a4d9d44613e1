"""Convert a Hugging Face model folder into a Megatron checkpoint: tools/import_hf.py --hf DIR --out DIR."""

import argparse
from pathlib import Path

from megatron_remit.errors import cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hf", type=Path, required=True, help="folder with config.json and safetensors files")
    parser.add_argument("--out", type=Path, required=True, help="new folder, to be passed to --load")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it holds a checkpoint")
    options = parser.parse_args()
    # Imported late: --help need not wait for torch and Megatron.
    from megatron_remit.convert.hf_to_megatron import import_hf

    import_hf(options.hf, options.out, overwrite=options.overwrite)
    print(f"imported {options.hf} to {options.out}")


if __name__ == "__main__":
    cli(main)
