"""Steps of the true program on fake CUDA tensors, in all layouts: an operator with tensors of two devices, or a wait
for the GPU that is not on the list, fails here without a GPU."""

import pytest

from megatron_remit.objectives.registry import OBJECTIVES
from tests.simulate.layouts import ALLOWED, CASES, SEQUENCE, SIDE_STREAMS, VOCABULARY


@pytest.mark.parametrize("name", CASES)
def test_a_step_runs_on_the_gpu_and_waits_only_where_it_may(name, gate):
    case, ranks = CASES[name], gate(name)
    assert list(ranks) == [f"rank {rank}" for rank in case.ranks]
    allowed = {line for group in ("every run", *case.waits) for line in ALLOWED[group]}
    found = {_function(wait) for rank in ranks.values() for wait in rank["host_waits"]}
    assert found - allowed == set()


@pytest.mark.parametrize("name", CASES)
def test_operators_are_on_another_stream_only_where_megatron_puts_them(name, gate):
    found = {_function(place) for rank in gate(name).values() for place in rank["side_streams"]}
    assert found == set(SIDE_STREAMS)


def test_no_entry_of_the_list_is_out_of_use(gate):
    found = {_function(wait) for name in CASES for rank in gate(name).values() for wait in rank["host_waits"]}
    assert {line for group in ALLOWED.values() for line in group} - found == set()


@pytest.mark.parametrize("name", CASES)
def test_the_frozen_models_run_where_the_objective_asks_for_them(name, gate):
    case = CASES[name]
    objective, phases = OBJECTIVES[case.objective], next(iter(gate(name).values()))["phases"]
    assert ("reference" in phases) == (objective.needs_reference and "--score-store" not in case.flags)
    assert ("reference base" in phases) == objective.needs_base
    assert {"policy forward", "policy backward", "optimizer"} <= set(phases)


def test_a_reference_in_host_memory_leaves_the_gpu_while_the_policy_trains(gate):
    here, away = (gate(name)["rank 0"] for name in ("DP2, ReMiT", "DP2, ReMiT, reference in host memory"))
    weights = 4 * (4 * 128**2 + 3 * 128 * 256 + 4 * 128) + 2 * 128 * VOCABULARY  # without the last norms
    saved = here["phases"]["policy backward"]["peak"] - away["phases"]["policy backward"]["peak"]
    assert 2 * weights <= saved <= 1.02 * 2 * weights


@pytest.mark.parametrize(
    ("name", "forward"), [("DP2, NTP", "_fused_rms_norm"), ("DP2, ReMiT, document masks", "cast_first_kernel")]
)
def test_the_norms_are_one_kernel_each_way(name, forward, gate):
    found = {(phase, name) for phase, name, _ in gate(name)["rank 0"]["operators"]}
    assert {("policy forward", forward), ("policy backward", "_fused_rms_norm_backward")} <= found
    assert ("policy forward", "rsqrt") not in found


def test_kd_counts_what_its_kernels_read_and_write(gate):
    """Two microbatches of one sequence; each rank has half of the vocabulary, in one segment a row."""
    case = gate("TP2, KD")["rank 0"]
    found = {name: size for phase, name, size in case["operators"] if phase == "policy forward"}
    rows, columns = 2 * SEQUENCE, VOCABULARY // 2
    # Both models' logits once each in bf16; maximum and sum of each row.
    assert found["kl_statistics_kernel"] == 2 * rows * (columns * 2 + 2 * 4)
    # Both models' logits, the gradient, four statistics and the divergence.
    assert found["kl_gradient_kernel"] == rows * (columns * (2 + 2 + 2) + 4 * 4 + 4)


def test_the_loss_counts_what_its_kernels_read_and_write(gate):
    case = gate("DP2, NTP")["rank 0"]
    forward, backward = (
        {name: size for phase, name, size in case["operators"] if phase == f"policy {direction}"}
        for direction in ("forward", "backward")
    )
    rows = 2 * SEQUENCE
    # The logits and once more the target's, the target, three statistics.
    assert forward["row_statistics_kernel"] == rows * (2 * (VOCABULARY + 1) + 8 + 3 * 4)
    # Two passes over two statistics each; target, NLL, normalizer.
    assert forward["merge_kernel"] == rows * (4 * 4 + 8 + 4 + 2 * 4)
    # The logits read and written; target, its gradient in fp32, two statistics.
    assert backward["gradient_kernel"] == rows * (2 * 2 * VOCABULARY + 8 + 4 + 2 * 4)


def _function(wait):
    """``FILE:LINE FUNCTION`` without the line, which moves."""
    place, function = wait.split(" ")
    return f"{place.rsplit(':', 1)[0]} {function}"
