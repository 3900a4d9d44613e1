"""megatron-remit select: the documents of a corpus that a large model prefers most over a small one (MiniPLM)."""

from megatron_remit.errors import cli
from megatron_remit.programs.select_samples import main

if __name__ == "__main__":
    cli(main)
