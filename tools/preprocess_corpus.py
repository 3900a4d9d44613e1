"""megatron-remit preprocess: tokenize JSONL text into Megatron's .bin/.idx corpus."""

from megatron_remit.errors import cli
from megatron_remit.programs.preprocess import main

if __name__ == "__main__":
    cli(main)
