"""A step's forward and backward passes on a time axis, in the order in which Megatron's own schedules run them.

    python benchmarks/pipeline_schedule.py --csv benchmarks/results/pipeline_schedule.csv --figure docs/pipeline.png

Two ways to score a step of m microbatches on p pipeline stages, with f and b the time of a stage's forward and backward
pass of one microbatch: the reference ahead of the step (``scoring/ahead.py``), or its forward pass inside each of the
policy's. Megatron's schedule functions are called for each stage with models, groups and communication that do nothing
but write down what they are asked to do. A pass then starts when its stage is free and its input is there. Sending
takes no time and waits for nobody. Needs no GPU.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from common import write_csv
from megatron.core.pipeline_parallel import schedules
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_remit import cpu

matplotlib.use("Agg")
from matplotlib import pyplot

COLORS = {"reference": "#8c6bb1", "forward": "#6baed6", "backward": "#fd8d3c"}


class Pass(NamedTuple):
    """One pass of a model chunk over a microbatch. Chunk c of stage s is part c * p + s of the model."""

    kind: str  # reference, forward or backward
    chunk: int
    microbatch: int


@dataclass(frozen=True)
class Setting:
    """A pipeline and the time of a stage's passes, over all its chunks."""

    stages: int
    chunks: int
    microbatches: int
    forward: float = 1.0
    backward: float = 2.0


class _Group:
    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


class _Communicator:
    """In the place of Megatron's ``P2PCommunicator``: whatever is received is there."""

    def __init__(self, config: TransformerConfig, stage: int, stages: int) -> None:
        self.config, self.pp_group = config, _Group(stage, stages)
        self.current_stage, self.total_stages = stage, stages
        self.virtual_pipeline_model_parallel_size = config.virtual_pipeline_model_parallel_size
        self.is_pp_first_stage, self.is_pp_last_stage = stage == 0, stage == stages - 1

    def __getattr__(self, name: str) -> Any:
        if not name.startswith(("send_", "recv_")):
            raise AttributeError(name)
        return self._answer if not name.endswith("backward_recv_forward_backward") else lambda *_, **__: (None, None)

    def _answer(self, *_: Any, overlap_p2p_comm: bool = False, **asked: Any) -> Any:
        handles = {name: _Handle() for name in ("recv_prev", "recv_next") if asked.get(name)}
        return (None, handles) if overlap_p2p_comm else None


class _Handle:
    def wait(self) -> None: ...


class _Chunk(torch.nn.Module):
    def __init__(self, config: TransformerConfig, number: int) -> None:
        super().__init__()
        self.config, self.number, self.model_type = config, number, None


def order_of(setting: Setting, stage: int, forward_only: bool) -> list[Pass]:
    """The passes of ``stage`` in the order of Megatron's schedule; of the reference with ``forward_only``."""
    passes: list[Pass] = []

    def forward_step(_function: Any, _data: Any, model: _Chunk, *_: Any, current_microbatch: int, **__: Any) -> Any:
        passes.append(Pass("reference" if forward_only else "forward", model.number, current_microbatch))
        return passes[-1], 0

    def backward_step(_input: Any, output: Pass, *_: Any) -> None:
        passes.append(Pass("backward", output.chunk, output.microbatch))

    interleaved = setting.chunks > 1
    config = TransformerConfig(
        num_layers=setting.stages * setting.chunks,
        hidden_size=8,
        num_attention_heads=1,
        pipeline_model_parallel_size=setting.stages,
        virtual_pipeline_model_parallel_size=setting.chunks if interleaved else None,
        pipeline_dtype=torch.float32,
        overlap_p2p_comm=interleaved,  # as Megatron's flags set it
        batch_p2p_comm=not interleaved,
    )
    groups = ProcessGroupCollection()
    groups.tp = groups.cp = _Group(0, 1)
    run = schedules.forward_backward_pipelining_without_interleaving
    if interleaved:
        run = schedules.forward_backward_pipelining_with_interleaving
    before = schedules.forward_step, schedules.backward_step
    schedules.forward_step, schedules.backward_step = forward_step, backward_step
    try:
        run(
            forward_step_func=None,
            data_iterator=[None] * setting.chunks,
            model=[_Chunk(config, number) for number in range(setting.chunks)],
            num_microbatches=setting.microbatches,
            seq_length=8,
            micro_batch_size=1,
            forward_only=forward_only,
            p2p_communicator=_Communicator(config, stage, setting.stages),
            pg_collection=groups,
        )
    finally:
        schedules.forward_step, schedules.backward_step = before
    return passes


def step(setting: Setting, way: str) -> list[list[tuple[Pass, float, float]]]:
    """For each stage its passes with start and end; ``way`` is ahead, inside, or none (no reference)."""
    stages = range(setting.stages)
    orders = [order_of(setting, stage, forward_only=False) for stage in stages]
    if way == "ahead":
        orders = [order_of(setting, stage, forward_only=True) + orders[stage] for stage in stages]
    forward = setting.forward * (2 if way == "inside" else 1)
    lengths = {"reference": setting.forward, "forward": forward, "backward": setting.backward}
    return on_time_axis(setting, orders, {kind: length / setting.chunks for kind, length in lengths.items()})


def on_time_axis(
    setting: Setting, orders: Sequence[Sequence[Pass]], lengths: dict[str, float]
) -> list[list[tuple[Pass, float, float]]]:
    """Each pass as early as the order of its stage and its input allow."""
    ended: dict[tuple[str, int, int], float] = {}  # by kind, part of the model and microbatch
    placed: list[list[tuple[Pass, float, float]]] = [[] for _ in orders]
    last = setting.stages * setting.chunks - 1
    while any(len(done) < len(order) for done, order in zip(placed, orders, strict=True)):
        moved = False
        for stage, (done, order) in enumerate(zip(placed, orders, strict=True)):
            while len(done) < len(order):
                one = order[len(done)]
                part = one.chunk * setting.stages + stage
                begin = done[-1][2] if done else 0.0
                needed = _needed(one, part, last)
                if needed is not None and needed not in ended:
                    break
                begin = max(begin, 0.0 if needed is None else ended[needed])
                ended[one.kind, part, one.microbatch] = begin + lengths[one.kind]
                done.append((one, begin, begin + lengths[one.kind]))
                moved = True
        if not moved:
            raise RuntimeError("the stages wait for each other")
    return placed


def _needed(one: Pass, part: int, last: int) -> tuple[str, int, int] | None:
    """Whose result a pass starts from."""
    if one.kind == "backward":
        return ("forward", part, one.microbatch) if part == last else ("backward", part + 1, one.microbatch)
    return None if part == 0 else (one.kind, part - 1, one.microbatch)


def formula(setting: Setting, way: str) -> float:
    """The step's length: v chunks a stage make the pipeline's fill and drain v times shorter."""
    f, b, fill = setting.forward, setting.backward, (setting.stages - 1) / setting.chunks
    m = setting.microbatches
    return {
        "none": (m + fill) * (f + b),
        "ahead": m * f + (m + fill) * (f + b),
        "inside": (m + fill) * (2 * f + b),
    }[way]


def length(placed: list[list[tuple[Pass, float, float]]]) -> float:
    """The end of the last pass."""
    return max(done[-1][2] for done in placed)


def rows(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """A row of the CSV for each setting."""
    found = []
    for setting in settings:
        row: dict[str, Any] = {name: getattr(setting, name) for name in Setting.__dataclass_fields__}
        for way in ("none", "ahead", "inside"):
            row[way] = round(length(step(setting, way)), 6)
            row[f"{way}_formula"] = round(formula(setting, way), 6)
        row["ahead_over_inside"] = round(row["ahead"] / row["inside"], 4)
        found.append(row)
    return found


def draw(setting: Setting, path: Path) -> None:
    """Both ways above each other, a line of boxes for each stage."""
    ways = {"ahead": "the reference ahead of the step", "inside": "the reference inside each forward pass"}
    figure, axes = pyplot.subplots(2, 1, figsize=(9, 3.6), sharex=True, layout="constrained")
    for axis, (way, title) in zip(axes, ways.items(), strict=True):
        placed = step(setting, way)
        for stage, done in enumerate(placed):
            for one, begin, end in done:
                color = COLORS[one.kind]
                axis.broken_barh([(begin, end - begin)], (stage - 0.4, 0.8), facecolors=color, edgecolors="white")
        axis.set_title(f"{title}: {length(placed):g}", fontsize=9)
        axis.set_yticks(range(setting.stages), [f"stage {stage}" for stage in range(setting.stages)], fontsize=7)
        axis.invert_yaxis()
    axes[-1].set_xlabel("time, in forward passes of a stage", fontsize=8)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=color) for color in COLORS.values()]
    figure.legend(handles, COLORS, loc="outside lower right", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Print the table; write the CSV and the figure where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forward", type=float, default=1.0, help="time of a stage's forward pass")
    parser.add_argument("--backward", type=float, default=2.0, help="time of a stage's backward pass")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--figure", type=Path, help="write the drawing of PP4 with 8 microbatches to this PNG")
    options = parser.parse_args()
    cpu.install()
    pairs = [(stages, chunks) for stages in (4, 8) for chunks in (1, 2)]
    times = options.forward, options.backward
    found = rows([Setting(stages, chunks, m * stages, *times) for stages, chunks in pairs for m in (1, 2, 4)])
    print(" ".join(found[0]))
    for row in found:
        print(*row.values())
    if options.csv is not None:
        write_csv(options.csv, found)
    if options.figure is not None:
        draw(Setting(4, 1, 8, *times), options.figure)


if __name__ == "__main__":
    main()
