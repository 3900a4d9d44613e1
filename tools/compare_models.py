"""megatron-remit compare: compare models on the same text, and runs by their logs."""

from megatron_remit.errors import cli
from megatron_remit.programs.commands import compare_command

if __name__ == "__main__":
    cli(compare_command)
