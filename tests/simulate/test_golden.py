"""A step of the paper's jobs costs what it cost when golden.json was written: memory, kernels, bytes, operations."""

import copy

import pytest

from tests.simulate import golden


@pytest.mark.parametrize("recipe", golden.JOBS)
def test_a_step_costs_what_is_committed(recipe, simulator):
    """Exactly, on any machine; ``python -m tests.simulate.renew`` says what moved, and renews the figures."""
    versions, expected = golden.read()
    moved = golden.differences(golden.record(recipe, simulator), expected[recipe])
    assert abs(moved.pop("peak")) <= golden.PEAK_TOLERANCE
    if versions == golden.versions():  # other versions have other kernels
        assert {name: difference for name, difference in moved.items() if difference} == {}


def test_one_kernel_more_is_a_difference():
    _, expected = golden.read()
    dearer = copy.deepcopy(expected["olmo1b"])
    dearer["phases"]["policy forward"]["kernels"] += 1
    moved = golden.differences(dearer, expected["olmo1b"])
    assert [name for name, difference in moved.items() if difference] == ["policy forward: kernels"]


def test_a_phase_that_is_gone_is_a_difference():
    _, expected = golden.read()
    without = copy.deepcopy(expected["olmo1b"])
    del without["phases"]["reference"]
    moved = golden.differences(without, expected["olmo1b"])
    assert {name for name, difference in moved.items() if difference} == {
        f"reference: {count}" for count in golden.COUNTS
    }


def test_what_is_written_is_read_back(tmp_path, monkeypatch):
    _, expected = golden.read()
    monkeypatch.setattr(golden, "FILE", tmp_path / "golden.json")
    golden.write(expected)
    assert golden.read() == (golden.versions(), expected)
