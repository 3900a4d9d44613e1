"""The cross-entropies that benchmarks/logprob.py compares, as far as they can be imported.

Each is a function of bf16 logits [N, 1, V] and int64 targets [N, 1] that returns the NLL per token, differentiable in
the logits, on one rank. Each peer is imported in its own function: those that are missing only drop out of the table.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as functional
from torch import Tensor

from megatron_remit.kernels.vocab_parallel_logprob import choose_implementation, vocab_parallel_nll

Nll = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """A cross-entropy under its name in the table."""

    name: str
    nll: Nll


def cross_entropies(device: torch.device) -> tuple[list[Peer], dict[str, str]]:
    """Ours first, then every peer that imports here; and why the others do not. Needs a process group of one rank."""
    implementation = choose_implementation("auto", device)
    found = [
        Peer("ours, in place", partial(_ours, implementation=implementation, in_place=True)),
        Peer("ours", partial(_ours, implementation=implementation, in_place=False)),
    ]
    missing = {}
    for name, make in _PEERS.items():
        try:
            found.append(make(name, device))
        except (ImportError, AttributeError, RuntimeError) as error:
            missing[name] = f"{type(error).__name__}: {error}"
    return found, missing


def _ours(logits_N1V: Tensor, targets_N1: Tensor, implementation: str, in_place: bool) -> Tensor:
    vocabulary = logits_N1V.size(-1)
    return vocab_parallel_nll(logits_N1V, targets_N1, vocabulary, None, implementation, in_place)


def _megatron(name: str, device: torch.device) -> Peer:
    from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy

    return Peer(name, partial(vocab_parallel_cross_entropy, tp_group=torch.distributed.group.WORLD))


def _megatron_fused(name: str, device: torch.device) -> Peer:
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

    return Peer(name, partial(fused_vocab_parallel_cross_entropy, tp_group=torch.distributed.group.WORLD))


def _transformer_engine(name: str, device: torch.device) -> Peer:
    from transformer_engine.pytorch.cross_entropy import parallel_cross_entropy

    # Positional, since it is an autograd function's `apply`: label smoothing, reduce, group.
    return Peer(name, lambda logits, targets: parallel_cross_entropy(logits, targets, 0.0, False, None))


def _liger(name: str, device: torch.device) -> Peer:
    from liger_kernel.ops.vocab_parallel_cross_entropy import LigerVocabParallelCEFunction

    # Group, ignored id, label smoothing and its formula and mode.
    return Peer(
        name,
        lambda logits, targets: LigerVocabParallelCEFunction.apply(
            logits, targets, None, -100, 0.0, "pytorch", "global"
        ),
    )


def _flash_attention(name: str, device: torch.device) -> Peer:
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    return Peer(
        name,
        lambda logits, targets: cross_entropy_loss(logits.flatten(0, 1), targets.flatten(), inplace_backward=True)[0],
    )


def _eager(name: str, device: torch.device) -> Peer:
    return Peer(name, _torch_cross_entropy)


def _compiled(name: str, device: torch.device) -> Peer:
    if device.type != "cuda":
        raise RuntimeError("compiled for a GPU only")
    # Each size is compiled with and without gradients; beyond this limit torch would quietly go back to eager.
    torch._dynamo.config.recompile_limit = 64
    return Peer(name, torch.compile(_torch_cross_entropy, dynamic=False))


def _torch_cross_entropy(logits_N1V: Tensor, targets_N1: Tensor) -> Tensor:
    return functional.cross_entropy(logits_N1V.flatten(0, 1).float(), targets_N1.flatten(), reduction="none")


_PEERS = {
    "megatron": _megatron,
    "megatron fused": _megatron_fused,
    "transformer engine, in place": _transformer_engine,
    "liger vocab-parallel": _liger,
    "flash-attn, in place": _flash_attention,
    "torch.compile": _compiled,
    "torch eager": _eager,
}


def cut_cross_entropy() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """``(hidden [N, H], weight [V, H], targets [N]) -> NLL [N]`` by cut-cross-entropy, None if it is missing."""
    if importlib.util.find_spec("cut_cross_entropy") is None:
        return None
    from cut_cross_entropy import linear_cross_entropy

    return partial(linear_cross_entropy, reduction="none")
