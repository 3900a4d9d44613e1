"""megatron-remit score: score a corpus into a store, ahead of training (under torchrun)."""

from megatron_remit.errors import cli
from megatron_remit.programs.score_corpus import main

if __name__ == "__main__":
    cli(main)
