"""megatron-remit preprocess: tokenize text into Megatron's .bin/.idx corpus."""

from megatron_remit.errors import cli
from megatron_remit.programs.commands import preprocess_command

if __name__ == "__main__":
    cli(preprocess_command)
