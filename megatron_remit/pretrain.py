"""The training program's entry: ``torchrun -m megatron_remit.pretrain <flags>`` (docs/training.md)."""

from megatron_remit.errors import cli

if __name__ == "__main__":
    # Not above: each rank's first checkpoint starts a process that imports this file again, and needs nothing of it
    # (get_write_results_queue of Megatron's filesystem_async.py).
    from megatron_remit.programs.train import main

    cli(main)
