"""The training program's entry: ``torchrun -m megatron_remit.pretrain <flags>`` (docs/training.md)."""

from megatron_remit.errors import cli
from megatron_remit.programs.train import main

if __name__ == "__main__":
    cli(main)
