"""Cost of standing in for CUDA on a CPU: cpu.py's wrapped functions against a global TorchFunctionMode.

    python benchmarks/cpu_overhead.py --csv benchmarks/results/cpu_overhead_cpu.csv

Three ways take turns in every repeat, so that slow changes of the machine's speed affect all of them alike:
``plain`` calls torch as it is, ``wrapped`` is what megatron_remit.cpu installs, and ``mode`` reaches the same calls
through a TorchFunctionMode. A ``device`` is "cpu" in plain calls and "cuda", as in Megatron's code, in the other two.
The results are microseconds of CPU time per call (so that other programs on the machine do not count), and what a way
adds to the plain call of the same repeat; 20th, 50th and 80th percentile over the repeats.
"""

import argparse
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch counts devices: with CUDA there is no stand-in

import torch
from common import conditions, percentiles, write_csv
from torch.overrides import TorchFunctionMode

from megatron_remit import cpu

WAYS = ("plain", "wrapped", "mode")


class CudaToCpu(TorchFunctionMode):
    """Sends every call that names a CUDA device to the CPU; while it is active Python sees every torch function."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def cases(threads: int) -> dict[str, tuple[int, dict[str, Callable[[], Any]]]]:
    """Name -> (calls per repeat, what each way calls). Shapes of the block are those of the tiny flywheel."""
    torch.set_num_threads(threads)
    cpu.install()
    small, square = torch.ones(8), torch.rand(8, 8)
    zeros, to = torch.zeros, torch.Tensor.to
    plain_zeros, plain_to = zeros.__wrapped__, to.__wrapped__
    up, down = torch.nn.Linear(128, 344, bias=False), torch.nn.Linear(344, 128, bias=False)
    gain, x = torch.ones(128, requires_grad=True), torch.randn(1536, 128)

    def block() -> None:
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * gain
        (x + down(torch.nn.functional.silu(up(normed)))).sum().backward()

    return {
        "zeros(8, device=...)": (
            2000,
            {
                "plain": lambda: plain_zeros(8, device="cpu"),
                "wrapped": lambda: zeros(8, device="cuda"),
                "mode": lambda: plain_zeros(8, device="cuda"),
            },
        ),
        "x.to(dtype), 8 elements": (
            2000,
            dict.fromkeys(WAYS, lambda: plain_to(small, torch.float64)) | {"wrapped": lambda: to(small, torch.float64)},
        ),
        "x + y, 8 elements": (2000, dict.fromkeys(WAYS, lambda: small + small)),
        "x @ y, 8 x 8": (2000, dict.fromkeys(WAYS, lambda: square @ square)),
        "MLP block, forward and backward, 1536 x 128": (3, dict.fromkeys(WAYS, block)),
    }


def microseconds(call: Callable[[], Any], calls: int, way: str) -> float:
    """Mean CPU time of one call."""
    with CudaToCpu() if way == "mode" else nullcontext():
        start = time.process_time()
        for _ in range(calls):
            call()
    return (time.process_time() - start) / calls * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    shared = {"threads": options.threads, **conditions("torch")}
    rows = []
    for name, (calls, ways) in cases(options.threads).items():
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for repeat in range(options.repeats + 1):
            for turn in range(3):  # who goes first changes, as the first pays for cold caches
                way = WAYS[(repeat + turn) % 3]
                value = microseconds(ways[way], calls, way)
                if repeat:  # the first repeat warms up
                    times[way].append(value)
        for way in WAYS:
            added = [value - plain for value, plain in zip(times[way], times["plain"], strict=True)]
            row = {
                "case": name,
                "way": way,
                "calls": calls,
                "repeats": options.repeats,
                **percentiles("us", times[way]),
                **percentiles("added_us", added),
            }
            print(" ".join(f"{value:>12}" if key != "case" else f"{value:<44}" for key, value in row.items()))
            rows.append(row | shared)
    if options.csv:
        write_csv(options.csv, rows)


if __name__ == "__main__":
    main()
