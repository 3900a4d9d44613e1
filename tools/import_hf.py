"""megatron-remit import: convert a Hugging Face model folder into a Megatron checkpoint."""

from megatron_remit.errors import cli
from megatron_remit.programs.commands import import_command

if __name__ == "__main__":
    cli(import_command)
