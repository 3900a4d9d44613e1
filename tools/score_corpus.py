"""Score a corpus into a store, ahead of training: torchrun tools/score_corpus.py <flags of the training run>."""

from megatron_remit.errors import cli
from megatron_remit.programs.score_corpus import main

if __name__ == "__main__":
    cli(main)
