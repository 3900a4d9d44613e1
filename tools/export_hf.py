"""megatron-remit export: convert a Megatron checkpoint into a Hugging Face model folder."""

from megatron_remit.errors import cli
from megatron_remit.programs.commands import export_command

if __name__ == "__main__":
    cli(export_command)
