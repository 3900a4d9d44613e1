"""What stands on fake tensors for Triton's kernels and for the choice of experts, and what it counts.

A launch does nothing, and counts with the bytes that the kernel reads and writes. A row's statistics and scalars are
counted for each program that reads them, its logits once, which is how often the kernels read them; what a cache holds
is not known here.

Shape suffixes as in the kernels: K segments of a row, N or C rows, V vocabulary columns of this rank.
"""

from collections.abc import Callable
from typing import Any

import numpy
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from torch import Tensor

from megatron_remit.kernels import kl_triton, logprob_triton, rms_parts_triton, rms_triton
from megatron_remit.simulate.ledger import Ledger


def install_kernels(ledger: Ledger) -> None:
    """Put a stand-in in the place of each kernel, in the module that launches it."""
    for module, kernels in _KERNELS.items():
        for name, count in kernels.items():
            names = [parameter.name for parameter in getattr(module, name).params]
            setattr(module, name, _Launch(name, names, count, ledger))


class _Launch:
    """Called as a kernel is: ``kernel[grid](arguments)``."""

    def __init__(self, name: str, names: list[str], count: Callable[[dict[str, Any]], int], ledger: Ledger) -> None:
        self._name, self._names, self._count, self._ledger = name, names, count, ledger

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self._run

    def _run(self, *values: Any, **named: Any) -> None:
        arguments = dict(zip(self._names, values, strict=False)) | named
        devices = {value.device.type for value in arguments.values() if isinstance(value, Tensor)}
        if devices != {"cuda"}:
            raise RuntimeError(f"{self._name} is launched with tensors on {', '.join(sorted(devices))}")
        self._ledger.add(self._name, self._count(arguments))


def _row_statistics(of: dict[str, Any]) -> int:
    """Each logit that is a token's, once more the target's; target and three statistics for each segment."""
    logits, statistics = of["logits_ptr"], of["statistics_ptr"]
    rows, itemsize = of["rows"], logits.itemsize
    return rows * (of["columns"] + 1) * itemsize + of["segments"] * rows * 8 + _size(statistics)


def _merge(of: dict[str, Any]) -> int:
    """The maxima are read twice: for the row's maximum, and to join the sums."""
    read = of["rows"] * of["parts"] * 4 * of["statistics_ptr"].itemsize
    return read + sum(_size(of[name]) for name in ("targets_ptr", "nll_ptr", "normalizer_ptr"))


def _gradient(of: dict[str, Any]) -> int:
    """Logits that are tokens' are read, all are written; target, gradient and two statistics for each segment."""
    rows, width = of["rows"], of["width"]
    logits = rows * (of["columns"] * of["logits_ptr"].itemsize + width * of["gradient_ptr"].itemsize)
    return logits + of["segments"] * rows * (8 + of["grad_output_ptr"].itemsize + 2 * 4)


def _kl_statistics(of: dict[str, Any]) -> int:
    return of["rows"] * of["columns"] * of["logits_ptr"].itemsize + _size(of["statistics_ptr"])


def _kl_gradient(of: dict[str, Any]) -> int:
    """Both models' logits are read, the gradient is written where it is asked for; four statistics for each segment."""
    rows = of["rows"]
    read = rows * of["columns"] * (of["logits_ptr"].itemsize + of["reference_ptr"].itemsize)
    written = rows * of["width"] * of["gradient_ptr"].itemsize if of["GRADIENT"] else 0
    return read + written + of["segments"] * rows * 4 * of["normalizer_ptr"].itemsize + _size(of["gap_ptr"])


def _once(of: dict[str, Any]) -> int:
    """Every tensor is read or written once; a weight is counted once."""
    return sum(_size(value) for value in of.values() if isinstance(value, Tensor))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize


_KERNELS: dict[Any, dict[str, Callable[[dict[str, Any]], int]]] = {
    logprob_triton: {
        "row_statistics_kernel": _row_statistics,
        "merge_kernel": _merge,
        "gradient_kernel": _gradient,
    },
    kl_triton: {"kl_statistics_kernel": _kl_statistics, "kl_gradient_kernel": _kl_gradient},
    rms_triton: {"cast_first_kernel": _once},
    rms_parts_triton: dict.fromkeys(
        ("mean_square_kernel", "scaled_kernel", "mean_product_kernel", "gradients_kernel"), _once
    ),
}


def install_experts(ledger: Ledger) -> None:
    """Which tokens an expert gets depends on values: here each gets an equal share. Megatron's all-to-all dispatcher
    copies the counts to the host and waits for them; the wait is written down. The dispatcher that gathers makes shapes
    from values, which stays an error: plan its runs with ``--moe-token-dispatcher-type alltoall``."""

    def dtoh_and_synchronize(self: Any, point: str, tokens_per_expert: Any = None) -> Any:
        if point == self.cuda_dtoh_point:
            tokens_per_expert = _route_evenly(self)
        if point == self.cuda_sync_point:
            ledger.wait()
        return tokens_per_expert

    MoEAlltoAllTokenDispatcher._maybe_dtoh_and_synchronize = dtoh_and_synchronize


def _route_evenly(dispatcher: Any) -> numpy.ndarray:
    """Set the counts that the dispatcher has on the host; the result is the tokens of each of this rank's experts."""
    experts, tp_size, ep_size = dispatcher.num_experts, dispatcher.tp_size, dispatcher.ep_size
    chosen = dispatcher.routing_map.size(0) * dispatcher.config.moe_router_topk
    of_expert = numpy.full(experts, chosen // experts)
    of_expert[: chosen % experts] += 1
    own = of_expert[dispatcher.local_expert_indices]
    dispatcher.num_out_tokens = chosen
    if tp_size * ep_size > 1:
        dispatcher.input_splits = of_expert.reshape(ep_size, -1).sum(axis=1)
        dispatcher.output_splits = numpy.full(ep_size, own.sum())
        dispatcher.output_splits_tp = numpy.full(tp_size, own.sum() * ep_size)
    dispatcher.num_global_tokens_per_local_expert = numpy.tile(own, (tp_size * ep_size, 1))
    return own * tp_size * ep_size
