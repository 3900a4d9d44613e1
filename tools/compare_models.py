"""megatron-remit compare: compare models on the same text, and runs by their logs."""

from megatron_remit.errors import cli
from megatron_remit.programs.compare import main

if __name__ == "__main__":
    cli(main)
