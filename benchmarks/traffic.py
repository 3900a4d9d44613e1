"""Kernels and bytes of the norms and of kd's divergence on fake CUDA tensors, beside what they replaced.

    python benchmarks/traffic.py [--step]

Norms: one whose input is [4096, 4, 2048] in bf16, forward and backward, per number of the input; ``kept`` is what waits
for the backward pass beside the input and the weight. kd: a microbatch of 16,384 tokens of OLMo-2-1B. ``plain`` is the
norm in torch's single operators, and kd in plain torch with 83 tokens a chunk. Needs what ``megatron-remit plan
--simulate`` needs; takes about a minute. ``--step`` simulates instead a step of ``examples/remit_olmo1b.sh`` with
single operators and with the fused norms.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.testing._internal.distributed.fake_pg
from plan_memory import settings_of
from torch import Tensor

from megatron_remit.errors import cli
from megatron_remit.kernels.vocab_parallel_kl import vocab_parallel_kl
from megatron_remit.launch.commands import Commands
from megatron_remit.launch.gpus import gpu
from megatron_remit.simulate import fake, shim, stand_ins
from megatron_remit.simulate.ledger import Ledger
from megatron_remit.simulate.run import simulate_run
from megatron_remit.specs import rms

TOKENS, BATCH, HIDDEN, VOCABULARY, EPS = 4096, 4, 2048, 100_352, 1e-5
OLD_CHUNK = 83
"""Tokens of a chunk of kd before there were at least 512."""
Count = tuple[float, float, float, float, float]
"""Kernels forward and backward, bytes forward and backward, bytes kept between them."""


def plain(x: Tensor, weight: Tensor, eps: float, cast_first: bool) -> Tensor:
    """:func:`rms.rms_norm` in torch's single operators, as a CPU computes it."""
    wide = x.float()
    return rms._scaled(wide, rms._mean_square(wide), weight, eps, cast_first, x.dtype)


def count(ledger: Ledger, function: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor) -> Count:
    """What ``function(*inputs)`` and its gradients do."""
    kept: dict[int, int] = {}
    own = {tensor.untyped_storage()._cdata for tensor in inputs}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    ledger.start()
    ledger.phase = "forward"
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = function(*inputs)
    outs = found if isinstance(found, tuple) else (found,)
    gradients = [torch.empty_like(out) for out in outs]
    ledger.phase = "backward"
    torch.autograd.grad(outs, [tensor for tensor in inputs if tensor.requires_grad], gradients)
    phases = ("forward", "backward")
    kernels, sizes = ([counts[phase] for phase in phases] for counts in (ledger.kernels, ledger.bytes))
    return *kernels, *sizes, sum(kept.values())


def empty(*shape: int, trained: bool = True) -> Tensor:
    """A fake CUDA tensor in bf16."""
    return torch.empty(shape, dtype=torch.bfloat16, device="cuda", requires_grad=trained)


def norms(ledger: Ledger) -> dict[str, Count]:
    """Per number of the input, by the norm's name."""
    x, weight = empty(TOKENS, BATCH, HIDDEN), empty(HIDDEN)
    half, half_weight = empty(TOKENS, BATCH, HIDDEN // 2), empty(HIDDEN // 2)
    group = torch.distributed.group.WORLD
    found = {}
    for name, cast_first in (("weight in fp32", False), ("cast first", True)):
        found[f"{name}, plain"] = count(ledger, partial(plain, eps=EPS, cast_first=cast_first), x, weight)
        found[name] = count(ledger, partial(rms.rms_norm, eps=EPS, cast_first=cast_first), x, weight)

        pair = half, empty(*half.shape), half_weight, empty(HIDDEN // 2)
        for way, norm in ((", plain", rms.PairOverRanks), ("", rms.FusedPairOverRanks)):

            def over_two_ranks(*tensors: Tensor, of: Any = norm, cast: bool = cast_first) -> tuple[Tensor, ...]:
                return of.apply(*tensors, EPS, cast, group)

            found[f"{name}, width over TP 2{way}"] = count(ledger, over_two_ranks, *pair)
    return {
        name: (kernels, more, *(size / x.numel() for size in sizes)) for name, (kernels, more, *sizes) in found.items()
    }


def divergence(ledger: Ledger) -> dict[str, Count]:
    """Of a microbatch, by the implementation."""
    logits, hidden = empty(TOKENS, BATCH, VOCABULARY), empty(TOKENS, BATCH, HIDDEN, trained=False)
    head = empty(VOCABULARY, HIDDEN, trained=False)

    def kl(implementation: str, chunk: int | None) -> Count:
        def call(logits: Tensor) -> Tensor:
            return vocab_parallel_kl(
                logits, hidden, head, VOCABULARY, chunk_tokens=chunk, implementation=implementation
            )

        return count(ledger, call, logits)

    return {"kd, plain": kl("torch", OLD_CHUNK), "kd, torch": kl("torch", None), "kd": kl("triton", None)}


def measure() -> dict[str, Count]:
    """All rows; only where the stand-in for CUDA is preloaded."""
    ledger = Ledger(1.0, 1.0, 0.0)
    stand_ins.install_kernels(ledger)
    store = torch.testing._internal.distributed.fake_pg.FakeStore()
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=store)
    with fake.Fake(ledger), ledger:
        return norms(ledger) | divergence(ledger)


def step() -> None:
    """Print what a step moves, with the norms of ``plain_norms`` and as it is."""
    settings = settings_of("olmo1b")
    gpus = settings.nodes * settings.gpus_per_node
    flags = Commands.of(settings).training_flags()
    print("| norms | policy, forward and backward | reference | peak |\n|---|---|---|---|")
    for name, modules in (("single operators", ("plain_norms",)), ("fused", ())):
        rank = simulate_run(settings.base_hf, settings.rl_hf, gpus, flags, gpu(settings.gpu), modules)["rank 0"]
        cells = []
        for phases in (("policy forward", "policy backward"), ("reference",)):
            size, kernels = (sum(rank["phases"][phase][of] for phase in phases) for of in ("bytes", "kernels"))
            cells.append(f"{size / 1e9:,.0f} GB in {kernels:,} operators")
        print(f"| {name} | {' | '.join(cells)} | {rank['peak'] / 2**30:.1f} GiB |", flush=True)


def main() -> None:
    """Print the table, from a process in which the stand-in for CUDA is preloaded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preloaded", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--step", action="store_true", help="simulate a step of OLMo-2-1B with and without fused norms")
    options = parser.parse_args()
    if options.step:
        step()
        return
    if not options.preloaded:
        environment = {**os.environ, **shim.environment(), "TORCH_COMPILE_DISABLE": "1"}
        raise SystemExit(subprocess.run([sys.executable, __file__, "--preloaded"], env=environment).returncode)
    print("| what | kernels forward, backward | bytes forward, backward | kept |\n|---|---|---|---|")
    for name, (kernels, more, forward, backward, kept) in measure().items():
        unit = (1e9, " GB") if name.startswith("kd") else (1.0, "")
        forward, backward, kept = (f"{size / unit[0]:.1f}{unit[1]}" for size in (forward, backward, kept))
        print(f"| {name} | {kernels:,} + {more:,} | {forward} + {backward} | {kept} |")


if __name__ == "__main__":
    cli(main)
