"""``tests/zygote.py`` with Transformer Engine's layers: ``python -m tests.te.zygote FD FOLDER``."""

import sys

import torch

from megatron_remit import cpu
from tests import zygote
from tests.te import stand_in


def main():
    cpu.install()
    stand_in.install(sys.argv[2])
    zygote.main(prepare=_let_layers_be_built)


def _let_layers_be_built():
    """Its layers refuse to be made without CUDA; this program goes on as on a CPU."""
    cpu.has_cuda = lambda: False
    torch.cuda.is_available = lambda: True


if __name__ == "__main__":
    main()
