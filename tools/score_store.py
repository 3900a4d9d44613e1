"""megatron-remit store: look at a score store and keep it in order."""

from megatron_remit.errors import cli
from megatron_remit.programs.score_store import main

if __name__ == "__main__":
    cli(main)
