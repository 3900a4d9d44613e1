"""What the operators of a step do to a GPU: live storages, kernels, bytes, operations and time, by phase."""

import contextlib
import sys
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# A name for what is no kernel: they make a tensor, or another look at one.
_NO_KERNEL = {"empty", "empty_like", "empty_strided", "detach", "alias", "_unsafe_view", "lift_fresh", "new_empty"} | {
    "_local_scalar_dense",
    "new_empty_strided",
    "record_stream",
    "set_",
    "resize_",
}
_BLOCK = 512
"""Bytes to which torch's allocator rounds up."""


class Ledger(TorchDispatchMode):
    """A mode under which every operator on CUDA tensors is written down.

    The time of a kernel is the longest of its bytes at ``bandwidth`` (bytes/s), its operations at ``peak`` (FLOP/s)
    and ``floor`` (s). It knows nothing of caches, nor of kernels that run at the same time.
    """

    def __init__(self, bandwidth: float, peak: float, floor: float) -> None:
        super().__init__()
        self._rates = bandwidth, peak, floor
        self.phase = "setup"
        self._live: dict[int, tuple[int, str, str]] = {}
        self.size = 0
        # Against the last peak: what is live since, and what is gone since. A copy at each new peak would take longer
        # than the step.
        self._since: set[int] = set()
        self._gone: list[tuple[int, str, str]] = []
        self.start()

    def start(self) -> None:
        """Count from here on; what is live stays."""
        self.kernels: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.peaks: Counter[str] = Counter()
        self.peak = self.size
        self.peak_phase = self.phase
        self._mark_peak()
        self.operators: Counter[tuple[str, str]] = Counter()
        self.waits: Counter[str] = Counter()
        self.side_streams: Counter[str] = Counter()

    @contextlib.contextmanager
    def named(self, phase: str) -> Iterator[None]:
        """All within belongs to ``phase``."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves(out) if _on_gpu(leaf)]
        name = func._schema.name.split("::")[1]
        if func.namespace == "aten" and not func.is_view and name not in _NO_KERNEL:
            read = [leaf for leaf in tree_leaves((args, kwargs)) if _on_gpu(leaf)]
            if read or tensors:
                count = flop_registry.get(func.overloadpacket)
                flops = count(*args, **kwargs, out_val=out) if count is not None else 0
                self.add(name, sum(tensor.numel() * tensor.element_size() for tensor in (*read, *tensors)), flops)
        for tensor in tensors:
            self._note(tensor)
        return out

    def add(self, name: str, size: int, flops: int = 0) -> None:
        """A kernel that reads and writes ``size`` bytes."""
        bandwidth, peak, floor = self._rates
        self.kernels[self.phase] += 1
        self.bytes[self.phase] += size
        self.flops[self.phase] += flops
        seconds = max(size / bandwidth, flops / peak, floor)
        self.seconds[self.phase] += seconds
        self.operators[self.phase, name] += size
        # What another stream does must be waited for.
        if torch.cuda.current_stream() != torch.cuda.default_stream():
            self.side_streams[" ".join(_source())] += 1

    def wait(self) -> None:
        """The host waits for the GPU, at the line that is being run: ``FILE:LINE FUNCTION``."""
        self.waits[" ".join(_source())] += 1

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        if key in self._live or not size:
            return
        self._live[key] = size, self.phase, source_line()
        self.size += size
        weakref.finalize(storage, self._free, key)
        self.peaks[self.phase] = max(self.peaks[self.phase], self.size)
        if self.size > self.peak:
            self.peak, self.peak_phase = self.size, self.phase
            self._mark_peak()
        else:
            self._since.add(key)

    def _mark_peak(self) -> None:
        self._since.clear()
        self._gone.clear()

    def _free(self, key: int) -> None:
        held = self._live.pop(key)
        self.size -= held[0]
        if key in self._since:
            self._since.remove(key)
        else:
            self._gone.append(held)

    def largest(self, number: int) -> list[dict[str, Any]]:
        """What was live at the peak, by the phase and the line that made it."""
        by_line: Counter[tuple[str, str]] = Counter()
        stayed = [held for key, held in self._live.items() if key not in self._since]
        for size, phase, line in (*stayed, *self._gone):
            by_line[phase, line] += size
        return [{"bytes": size, "phase": phase, "line": line} for (phase, line), size in by_line.most_common(number)]


def source_line() -> str:
    """The innermost line of this project or of Megatron that is being run; torch's own backward has none."""
    return _source()[0]


def _source() -> tuple[str, str]:
    """That line, and the name of its function."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "megatron" in file and "/simulate" not in file:
            # From the package's folder on: the rest is this machine's.
            short = file[max(file.rfind("/megatron/"), file.rfind("/megatron_remit/")) + 1 :]
            return f"{short}:{frame.f_lineno}", frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]
    return "torch's backward", ""


def _on_gpu(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.device.type == "cuda"
