"""The predicted time of a step, by hand: OLMo-2-1B on H100 with the paper's batch."""

import pytest

from megatron_remit.launch.gpus import gpu
from megatron_remit.launch.plan_checks import place
from megatron_remit.launch.throughput import predict
from tests.launch.planned import PAPER

H, F, V, LAYERS, LENGTH = 2048, 8192, 100352, 16, 4096
H100 = gpu("H100-80GB")
TOKENS = 4 * LENGTH
OVERLAP = ("--overlap-grad-reduce", "--overlap-param-gather")


def step(planned, *flags, gpus=32, reference=True, gpus_per_node=8):
    training = [*PAPER, *map(str, flags), *(() if reference else ("--objective", "ntp"))]
    run = place(planned.folder / "base", planned.folder / "rl" if reference else None, gpus, training)
    return predict(run.policy, list(run.frozen.values()), H100, gpus_per_node)


def test_products_are_six_operations_a_parameter(planned):
    parameters = LAYERS * (4 * H * H + 3 * H * F) + V * H
    expected = 4 * TOKENS * 6 * parameters / (0.7 * H100.peak)
    assert step(planned).policy["products"] == pytest.approx(expected)


def test_attention_sees_half_of_the_sequence(planned):
    """2 operations for each number of a key and a value, and 2.5 times as many backward."""
    forward = LAYERS * 2 * 2 * H * LENGTH / 2
    assert step(planned).policy["attention"] == pytest.approx(4 * TOKENS * 3.5 * forward / (0.5 * H100.peak))


def test_the_reference_is_a_forward_pass_of_the_step(planned):
    """Its microbatches are twice the policy's, so that half as many kernels start."""
    found = step(planned, *OVERLAP)
    policy = found.policy
    starts = 2 * LAYERS * 30 * 2e-6
    forward = policy["products"] / 3 + policy["attention"] / 3.5 + policy["traffic"] * 1.5 / 4 + starts
    assert found.reference == pytest.approx(forward)
    assert found.online == pytest.approx(sum(policy.values()) / (sum(policy.values()) + found.reference))
    assert found.speed == pytest.approx(4 * TOKENS / (sum(policy.values()) + found.reference))


def test_next_token_prediction_has_none(planned):
    found = step(planned, reference=False)
    assert found.reference == 0.0 and found.online == 1.0


def test_tensor_parallelism_moves_hidden_states_ten_times_a_layer(planned):
    found = step(planned, "--tensor-model-parallel-size", 2, "--sequence-parallel")
    moved = 8 * LAYERS * 10 * TOKENS * H * 2 / 2  # 8 microbatches; half of the tensor leaves a rank
    assert found.policy["TP"] == pytest.approx(moved / (0.8 * 450e9))
    slow = step(planned, "--tensor-model-parallel-size", 2, "--sequence-parallel", gpus_per_node=1)
    assert slow.policy["TP"] == pytest.approx(9 * found.policy["TP"])


def test_a_pipeline_waits_for_its_ends(planned):
    """Of 16 microbatches on 4 stages 3 more are waited for, with two chunks a stage half of that."""
    pipeline = ("--pipeline-model-parallel-size", 4)
    plain = step(planned, *pipeline, *OVERLAP).policy
    worked = sum(plain[name] for name in ("products", "attention", "traffic", "starts"))
    assert plain["bubble"] == pytest.approx(worked * 3 / 16)
    virtual = step(planned, *pipeline, "--num-virtual-stages-per-pipeline-rank", 2, *OVERLAP).policy
    assert virtual["bubble"] == pytest.approx(plain["bubble"] / 2)
    assert plain["PP"] > 0 and "PP" not in virtual


def test_gradients_and_weights_hide_where_the_flags_say_so(planned):
    parameters = LAYERS * (4 * H * H + 3 * H * F + 4 * H) + 2 * V * H + H
    moved = parameters * 31 / 32 * (4 + 2)
    assert step(planned).policy["DP"] == pytest.approx(moved / (0.8 * 50e9))
    assert step(planned, *OVERLAP).policy["DP"] == 0.0


def test_recomputation_is_another_forward_pass(planned):
    flags = ("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", 1)
    assert step(planned, *flags).policy["products"] == pytest.approx(step(planned).policy["products"] * 4 / 3)


def test_offloading_copies_the_references_weights_once(planned):
    parameters = LAYERS * (4 * H * H + 3 * H * F + 4 * H) + 2 * V * H + H
    copied = step(planned, "--reference-offload").reference - step(planned).reference
    assert copied == pytest.approx(2 * parameters / 50e9)
