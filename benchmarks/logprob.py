"""Speed and memory of the NLL kernels and of every other cross-entropy that is installed.

    python benchmarks/logprob.py --csv benchmarks/results/logprob_h100.csv
    python benchmarks/logprob.py --device cpu --rows 64 --vocabulary 1000 --hidden 32 --repeats 3    # to try it

In every repeat all take turns, each time starting with another one, so that slow changes of the clock affect all
alike. The table has the 20th, 50th and 80th percentile of the milliseconds and of the ratio to ours in the same repeat,
and the peak memory including the logits. ``of_copy`` is the bandwidth, counted in the fewest bytes that the task needs
(one read of the logits for a forward pass; two reads and one write for both passes), as a share of the bandwidth of a
device copy in the same repeat.

Then comes the reference's head: hidden states to NLL in chunks, against the bare matrix product and against the whole
logits. Every row of results is written as soon as it is known.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from logprob_peers import Peer, cross_entropies, cut_cross_entropy
from megatron_remit.kernels.chunked_head_logprob import chunked_head_nll
from megatron_remit.kernels.vocab_parallel_logprob import choose_implementation, vocab_parallel_nll

VOCABULARIES = (32000, 100352, 128256, 131072, 151936)
PACKAGES = ("triton", "megatron-core", "transformer-engine", "liger-kernel", "flash-attn", "cut-cross-entropy")
COPY = "device copy"
FIELDS = (
    "task",
    "name",
    "rows",
    "vocabulary",
    "hidden",
    "repeats",
    "ms_p20",
    "ms_p50",
    "ms_p80",
    "of_copy_p50",
    "times_ours_p20",
    "times_ours_p50",
    "times_ours_p80",
    "peak_mib",
    "error",
)

Call = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=8192, help="tokens")
    parser.add_argument("--vocabulary", type=int, action="append", help="default: " + ", ".join(map(str, VOCABULARIES)))
    parser.add_argument("--hidden", type=int, action="append", help="of the head; default: 2048, 4096")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--csv", type=Path, help="write the results to this file as they come")
    options = parser.parse_args()
    device = torch.device(options.device)
    one_rank(device)
    table = Table(options.csv, conditions(device))
    peers, missing = cross_entropies(device)
    for name, reason in missing.items():
        print(f"without {name}: {reason}", flush=True)
    for vocabulary in options.vocabulary or VOCABULARIES:
        compare_cross_entropies(table, peers, options.rows, vocabulary, options.repeats, device)
    for hidden in options.hidden or (2048, 4096):
        compare_heads(table, options.rows, (options.vocabulary or (131072,))[0], hidden, options.repeats, device)
    torch.distributed.destroy_process_group()


def compare_cross_entropies(
    table: "Table", peers: list[Peer], rows: int, vocabulary: int, repeats: int, device: torch.device
) -> None:
    """Forward, then forward and backward, of bf16 logits [rows, 1, vocabulary]."""
    logits = torch.randn(rows, 1, vocabulary, device=device, dtype=torch.bfloat16)
    targets = torch.randint(0, vocabulary, (rows, 1), device=device)
    grad_output = torch.rand(rows, device=device)

    def forward(peer: Peer) -> None:
        with torch.no_grad():
            peer.nll(logits, targets)

    def forward_backward(peer: Peer) -> None:
        # A leaf on the same memory: what an in-place backward pass leaves there serves the next call as logits.
        leaf = logits.detach().requires_grad_()
        nll = peer.nll(leaf, targets)
        torch.autograd.grad(nll, leaf, grad_output.view(nll.shape))

    # Only the backward pass differs between in place and not, so the forward pass is timed once.
    for task, run, chosen, passes in (
        ("forward", forward, peers[1:], 1),
        ("forward and backward", forward_backward, peers, 3),
    ):
        calls = {COPY: logits.clone} | {peer.name: partial(run, peer) for peer in chosen}
        floor = passes * logits.numel() * logits.element_size()
        measure(
            table,
            calls,
            chosen[0].name,
            repeats,
            device,
            floor,
            2 * logits.numel() * logits.element_size(),
            task=task,
            rows=rows,
            vocabulary=vocabulary,
        )


def compare_heads(table: "Table", rows: int, vocabulary: int, hidden: int, repeats: int, device: torch.device) -> None:
    """Hidden states to NLL without gradients; ``times_ours`` of the bare matrix product is its share of our time."""
    states = torch.randn(rows, 1, hidden, device=device, dtype=torch.bfloat16)
    weight = torch.randn(vocabulary, hidden, device=device, dtype=torch.bfloat16) / hidden**0.5
    targets = torch.randint(0, vocabulary, (rows, 1), device=device)
    implementation = choose_implementation("auto", device)

    def product() -> torch.Tensor:
        return torch.matmul(states, weight.t())

    calls: dict[str, Call] = {
        "chunked head": lambda: chunked_head_nll(states, weight, targets, vocabulary, None, implementation),
        "bare matrix product": product,
        "whole logits, then ours": lambda: vocab_parallel_nll(
            product(), targets, vocabulary, implementation=implementation
        ),
        "whole logits, then torch eager": lambda: torch.nn.functional.cross_entropy(
            product().flatten(0, 1).float(), targets.flatten(), reduction="none"
        ),
    }
    cut = cut_cross_entropy()
    if cut is not None:
        calls["cut-cross-entropy"] = lambda: cut(states.flatten(0, 1), weight, targets.flatten())
    with torch.no_grad():
        measure(
            table,
            calls,
            "chunked head",
            repeats,
            device,
            None,
            None,
            task="head",
            rows=rows,
            vocabulary=vocabulary,
            hidden=hidden,
        )


def measure(
    table: "Table",
    calls: dict[str, Call],
    ours: str,
    repeats: int,
    device: torch.device,
    floor_bytes: int | None,
    copy_bytes: int | None,
    **fixed: Any,
) -> None:
    """Run ``calls`` in turn and add a row for each. A call that fails gets a row with its error and no timing."""
    peaks: dict[str, float | None] = {}
    for name in list(calls):
        try:
            calls[name]()  # compiles
            peaks[name] = peak_mib(calls[name], device)
        except Exception as error:  # a peer's failure is a result, not the end of the run
            table.add(fixed | {"name": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"})
            del calls[name]
    names, times = list(calls), {name: [] for name in calls}
    for repeat in range(repeats):
        for turn in range(len(names)):
            name = names[(repeat + turn) % len(names)]
            times[name].append(milliseconds(calls[name], device))
    for name in names:
        row = fixed | {"name": name, "repeats": repeats, "peak_mib": peaks[name]} | percentiles("ms", times[name])
        if ours in times:
            ratios = [theirs / own for theirs, own in zip(times[name], times[ours], strict=True)]
            row |= percentiles("times_ours", ratios)
        if floor_bytes and copy_bytes and COPY in times:
            moved = copy_bytes if name == COPY else floor_bytes
            row["of_copy_p50"] = round(
                statistics.median(
                    copy / copy_bytes * moved / own for own, copy in zip(times[name], times[COPY], strict=True)
                ),
                4,
            )
        table.add(row)


def milliseconds(call: Call, device: torch.device) -> float:
    """Duration of one call by CUDA events, or by the wall clock on a CPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    # The device is kept busy while the host queues the call, so that the events time the device and not Python.
    torch.cuda._sleep(1_000_000)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def peak_mib(call: Call, device: torch.device) -> float | None:
    """Peak of allocated memory during one call, inputs included, without what other calls keep; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return round(torch.cuda.max_memory_allocated() / 2**20, 1)


def percentiles(name: str, values: list[float]) -> dict[str, float]:
    """20th, 50th and 80th percentile under ``NAME_p20`` and so on."""
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return {f"{name}_p{10 * i + 10}": round(cuts[i], 4) for i in (1, 4, 7)}


class Table:
    """Prints rows and appends each at once to a new CSV file."""

    def __init__(self, path: Path | None, conditions: dict[str, str]) -> None:
        self._path, self._conditions = path, conditions
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                csv.DictWriter(file, [*FIELDS, *conditions]).writeheader()

    def add(self, row: dict[str, Any]) -> None:
        print(" | ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if self._path is not None:
            with self._path.open("a", newline="") as file:
                csv.DictWriter(file, [*FIELDS, *self._conditions]).writerow(row | self._conditions)


def conditions(device: torch.device) -> dict[str, str]:
    """Device, commit and versions for which the figures hold."""
    found = {}
    for package in PACKAGES:
        try:
            found[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:
            found[package.replace("-", "_")] = ""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"
    return {
        "device": name,
        "commit": commit.stdout.strip(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        **found,
    }


def one_rank(device: torch.device) -> None:
    """Make a process group of one rank: Megatron's functions call all-reduce on whatever group they get."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


if __name__ == "__main__":
    main()
