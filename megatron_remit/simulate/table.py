"""The simulation's figures as text, and what they predict: time of a step, MFU, tokens per second.

A store leaves out the reference's scoring, next-token prediction has no reference at all. Both run the same policy
step, so one simulation of the online run gives all three.
"""

from typing import Any

from megatron_remit.launch.gpus import Gpu

_GIB = 2**30
_STORED = 2
"""Bytes that a score store holds per token, in float16; 20 more per row."""


def describe(ranks: dict[str, dict[str, Any]], tokens: int, gpus: int, kind: Gpu) -> str:
    """Lines on the simulated ranks.

    Args:
        ranks: what ``simulate_run`` returns.
        tokens: tokens of a step, over all GPUs.
        gpus: GPUs of the run.
        kind: the GPU that the times are for.
    """
    lines = [f"simulated on {kind.name}, not run on a GPU (docs/simulate.md says how far to trust it)"]
    for name, rank in ranks.items():
        lines += [f"{name}: peak {rank['peak'] / _GIB:.2f} GiB in '{rank['peak_phase']}'", *_phases(rank)]
        lines.append("  largest at the peak, by the line that made them")
        lines += [f"    {_gib(held['bytes'])}  {held['phase']}: {held['line']}" for held in rank["holders"]]
        lines.append("  waits of the host for the GPU in a step")
        lines += [f"    {count:5}  {line}" for line, count in rank["host_waits"].items()]
    return "\n".join([*lines, *_speed(ranks, tokens, gpus, kind)])


def _phases(rank: dict[str, Any]) -> list[str]:
    lines = [f"  {'phase':<18}{'peak GiB':>10}{'kernels':>9}{'GB':>9}{'TFLOP':>9}{'ms':>9}"]
    for name, phase in rank["phases"].items():
        lines.append(
            f"  {name:<18}{phase['peak'] / _GIB:10.2f}{phase['kernels']:9,}{phase['bytes'] / 1e9:9.1f}"
            f"{phase['flops'] / 1e12:9.2f}{1e3 * phase['seconds']:9.1f}"
        )
    return lines


def _speed(ranks: dict[str, dict[str, Any]], tokens: int, gpus: int, kind: Gpu) -> list[str]:
    """The slowest rank's kernels set the pace; communication and the pipeline's bubble are left out."""
    lines = ["predicted, without communication and pipeline bubbles:"]
    baseline = max(seconds_of(rank, False) for rank in ranks.values())
    scored = any(_frozen(name) for rank in ranks.values() for name in rank["phases"])
    for name, online in (("online", True), ("store, NTP", False)) if scored else (("store, NTP", False),):
        slowest = max(ranks.values(), key=lambda rank: seconds_of(rank, online))
        seconds = seconds_of(slowest, online)
        flops = sum(phase["flops"] for name, phase in slowest["phases"].items() if online or not _frozen(name))
        lines.append(
            f"  {name:<12}{1e3 * seconds:9.1f} ms a step, MFU {100 * flops / seconds / kind.peak:.0f} %, "
            f"{tokens / seconds / gpus:,.0f} tokens/s a GPU, {baseline / seconds:.2f} of NTP"
        )
    if scored:
        lines.append(f"  at that speed a store is read at {_STORED * tokens / baseline / gpus / 1e6:.2f} MB/s a GPU")
    return lines


def seconds_of(rank: dict[str, Any], online: bool) -> float:
    """Seconds of a rank's kernels in a step; without ``online`` those of the frozen models are left out."""
    return sum(phase["seconds"] for name, phase in rank["phases"].items() if online or not _frozen(name))


def _frozen(phase: str) -> bool:
    return phase.startswith("reference")


def _gib(size: int) -> str:
    return f"{size / _GIB:7.3f} GiB"
