"""``--reference-offload``: between scoring passes the frozen weights lie in pinned host memory.

The weights of a rank are copied to the GPU before each pass and dropped after it, so they take no room while the policy
trains. The copies hold the same bits, and so do the scores. A step waits for the weights once: bytes of the rank's
weights over the bandwidth of the way from the host.
"""

import argparse
import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Module

from megatron_remit.errors import UserError

# Where a module keeps the host's copies: parameter by parameter, in the order of parameters(), which names shared ones
# once.
_COPIES = "remit_host_copies"


def check_offload(args: argparse.Namespace, builds_reference: bool, reads_output_layer: bool) -> None:
    """Refuse ``--reference-offload`` where it cannot be done.

    Args:
        args: the run's arguments.
        builds_reference: whether the run has a frozen model at all.
        reads_output_layer: whether the objective needs the reference's output layer while the policy trains.

    Raises:
        UserError: names the flag, what was found and what to do.
    """
    flag = "--reference-offload"
    if not args.reference_offload:
        return
    if not builds_reference:
        raise UserError(f"{flag}: this run builds no reference (--objective {args.objective}, score stores); drop it")
    if reads_output_layer:
        raise UserError(
            f"{flag} with --objective {args.objective}: it reads the reference's output layer while the policy trains, "
            "so that must stay on the GPU; drop the flag"
        )
    if args.reference_fp8:
        raise UserError(f"{flag} with --reference-fp8: Transformer Engine keeps fp8 copies of the weights; drop one")


def offload(chunks: Sequence[Module]) -> None:
    """Move the weights of these model chunks to the host. Nothing may read them but within :func:`resident`."""
    for chunk in chunks:
        setattr(chunk, _COPIES, [_on_host(parameter.data) for parameter in chunk.parameters()])
        _drop(chunk)


@contextlib.contextmanager
def resident(chunks: Sequence[Module]) -> Iterator[None]:
    """The weights of ``chunks`` are on the device within; nothing happens to chunks that were not offloaded.

    Copies and kernels are queued on one stream, so the host waits for neither.
    """
    away = [chunk for chunk in chunks if hasattr(chunk, _COPIES)]
    for chunk in away:
        for parameter, copy in zip(chunk.parameters(), getattr(chunk, _COPIES), strict=True):
            parameter.data = torch.empty_like(copy, device=parameter.device).copy_(copy, non_blocking=True)
    try:
        yield
    finally:
        for chunk in away:
            _drop(chunk)


def _on_host(weight: Tensor) -> Tensor:
    copy = weight.detach().to("cpu", copy=True)
    return copy.pin_memory() if weight.is_cuda else copy


def _drop(chunk: Module) -> None:
    for parameter in chunk.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
