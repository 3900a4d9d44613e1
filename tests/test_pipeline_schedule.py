"""benchmarks/pipeline_schedule.py: the order of Megatron's schedules, on a time axis."""

import csv
import sys

import pytest

from megatron_remit import cpu
from tests.ranks import ROOT

BENCHMARKS = str(ROOT / "benchmarks")


@pytest.fixture(scope="module")
def program():
    cpu.install()
    sys.path.insert(0, BENCHMARKS)
    try:
        import pipeline_schedule
    finally:
        sys.path.remove(BENCHMARKS)
    return pipeline_schedule


def test_the_order_is_that_of_one_forward_one_backward(program):
    setting = program.Setting(stages=2, chunks=1, microbatches=3)
    named = [
        "".join(f"{one.kind[0]}{one.microbatch} " for one in program.order_of(setting, stage, forward_only=False))
        for stage in (0, 1)
    ]
    assert named == ["f0 f1 b0 f2 b1 b2 ", "f0 b0 f1 b1 f2 b2 "]


def test_virtual_stages_go_through_a_chunk_with_as_many_microbatches_as_there_are_stages(program):
    setting = program.Setting(stages=2, chunks=2, microbatches=4)
    order = program.order_of(setting, 0, forward_only=True)
    expected = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert [(one.chunk, one.microbatch) for one in order] == expected


def test_the_times_of_a_small_pipeline_by_hand(program):
    placed = program.step(program.Setting(stages=2, chunks=1, microbatches=2, forward=1, backward=2), "ahead")
    times = [[(one.kind[0], one.microbatch, begin, end) for one, begin, end in done] for done in placed]
    assert times == [
        [("r", 0, 0, 1), ("r", 1, 1, 2), ("f", 0, 2, 3), ("f", 1, 3, 4), ("b", 0, 6, 8), ("b", 1, 9, 11)],
        [("r", 0, 1, 2), ("r", 1, 2, 3), ("f", 0, 3, 4), ("b", 0, 4, 6), ("f", 1, 6, 7), ("b", 1, 7, 9)],
    ]


@pytest.mark.parametrize("way", ["none", "ahead", "inside"])
@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize("stages", [4, 8])
def test_a_traced_step_is_as_long_as_the_formula_says(program, stages, chunks, way):
    setting = program.Setting(stages, chunks, microbatches=2 * stages, forward=1.0, backward=1.75)
    assert program.length(program.step(setting, way)) == pytest.approx(program.formula(setting, way), abs=1e-9)


def test_stages_that_wait_for_each_other_are_an_error(program):
    setting = program.Setting(stages=2, chunks=1, microbatches=1)
    forward, backward = program.Pass("forward", 0, 0), program.Pass("backward", 0, 0)
    lengths = {"forward": 1.0, "backward": 2.0}
    with pytest.raises(RuntimeError, match="wait for each other"):
        program.on_time_axis(setting, [[backward, forward], [forward, backward]], lengths)


def test_the_committed_table_is_what_the_program_finds(program):
    with open(ROOT / "benchmarks/results/pipeline_schedule.csv", newline="") as file:
        committed = list(csv.DictReader(file))
    settings = [
        program.Setting(*(int(row[name]) for name in ("stages", "chunks", "microbatches")), 1.0, 2.0)
        for row in committed
    ]
    assert [{name: str(value) for name, value in row.items()} for row in program.rows(settings)] == committed
