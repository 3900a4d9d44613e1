"""The training program, which tells when the policy's parameter all-gathers start and when the reference runs."""

import sys

import torch
from megatron.core.distributed import DistributedDataParallel

from megatron_remit.programs.train import main
from megatron_remit.scoring import ahead


def told(name, function):
    def call(*args, **kwargs):
        # One write for the whole line: the ranks share the pipe, and print writes the line's end on its own.
        sys.stdout.write(f"event of rank {torch.distributed.get_rank()}: {name}\n")
        sys.stdout.flush()
        return function(*args, **kwargs)

    return call


if __name__ == "__main__":
    DistributedDataParallel.start_param_sync = told("gather", DistributedDataParallel.start_param_sync)
    ahead.score_microbatches = told("score", ahead.score_microbatches)
    main()
