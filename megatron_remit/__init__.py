"""ReMiT (RL-guided mid-training) on Megatron-Core."""

import logging as _logging
import sys as _sys
import warnings as _warnings
from importlib.abc import MetaPathFinder as _MetaPathFinder

# What Megatron says while it is imported where Transformer Engine and apex are not installed. This program chooses its
# layers by itself, and an error of a user's input must not stand below ten lines of warnings.
for _message in (
    "Apex is not installed",
    "Transformer Engine and Apex are not installed",
    "Only transformer-engine>=1.7.0 supports MoE experts",
    "torch.distributed is disabled, unavailable or uninitialized",
):
    _warnings.filterwarnings("ignore", message=_message)


def _is_news(record: _logging.LogRecord) -> bool:
    """Whether a line of torch's tells a user something: on a machine with CUDA's compiler and without a GPU, which may
    well be meant, it warns of the compiler's folder."""
    return not str(record.msg).startswith("No CUDA runtime is found")


_logging.getLogger("torch.utils.cpp_extension").addFilter(_is_news)


class _BeforeMegatron(_MetaPathFinder):
    """Finds no module. Megatron compiles its fusions while it is imported, by whichever module needs it first; this is
    the one place that always comes before."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "megatron.core":
            from megatron_remit import cpu

            cpu.leave_out_compiler()


_sys.meta_path.insert(0, _BeforeMegatron())
