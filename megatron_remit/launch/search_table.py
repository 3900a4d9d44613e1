"""The search's layouts as text, and the commands that go on from the best one."""

import shlex
from pathlib import Path

from megatron_remit.errors import UserError
from megatron_remit.launch.gpus import Gpu
from megatron_remit.launch.search import RESERVE, Candidate, Search, check_layout

_GIB = 2**30
_SHOWN = 8


def describe(found: Search, base_hf: Path, reference_hf: Path | None, gpus: int, kind: Gpu) -> str:
    """The best layouts, the reasons why others fall, and a command that simulates the best.

    Every layout that is printed has passed all checks of the plan once more, by its own flags; one that does not counts
    among the fallen.
    """
    shown: list[Candidate] = []
    for candidate in found.fitting:
        if len(shown) == _SHOWN:
            break
        try:
            check_layout(candidate, base_hf, reference_hf, gpus, found.training)
            shown.append(candidate)
        except UserError as error:
            found.fallen[str(error)] += 1
    lines = [
        f"{len(found.fitting)} layouts of {gpus} {kind.name} fit and leave {100 * RESERVE:.0f} % of the memory; the "
        f"{len(shown)} fastest, predicted by formulas (docs/search.md), not run on a GPU"
    ]
    if shown:
        lines += _table(shown)
    else:
        lines.append("  none: take more GPUs, GPUs of more memory, or a smaller --seq-length")
    lines.append("fallen, and why:")
    lines += [f"  {count:4}  {reason}" for reason, count in found.fallen.most_common()]
    return "\n".join([*lines, *(_next(shown[0], base_hf, reference_hf, gpus, found.training, kind) if shown else [])])


def _table(shown: list[Candidate]) -> list[str]:
    """Tokens per second and GPU with the reference ahead, and without it: from stores, or next-token prediction."""
    lines = [
        "    TP  PP VPP  CP  EP   DP  MB recompute offload    GiB   online  store, NTP  ratio  bound by",
    ]
    for found in shown:
        layout, step = found.layout, found.step
        sizes = f"{layout.tp:6}{layout.pp:4}{layout.virtual:4}{layout.cp:4}{layout.ep:4}{found.data_parallel:5}"
        recompute, offload = ("yes" if value else "no" for value in (layout.recompute, layout.offload))
        lines.append(
            f"{sizes}{layout.micro_batch:4} {recompute:>9} {offload:>7}{found.memory / _GIB:7.1f}{step.speed:9,.0f}"
            f"{step.speed / step.online:12,.0f}{step.online:7.2f}  {step.bound}"
        )
    return lines


def _next(
    best: Candidate, base_hf: Path, reference_hf: Path | None, gpus: int, training: list[str], kind: Gpu
) -> list[str]:
    command = ["megatron-remit", "plan", "--simulate", "--base-hf", str(base_hf), "--gpus", str(gpus)]
    command += ["--gpu", kind.name]
    if reference_hf is not None:
        command += ["--reference-hf", str(reference_hf)]
    command += ["--", *training, *best.layout.flags()]
    return [
        f"flags of the best: {' '.join(best.layout.flags())}",
        f"to simulate it: {shlex.join(command)}",
    ]
