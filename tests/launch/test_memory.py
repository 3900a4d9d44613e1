"""The memory that a plan prints, by hand: OLMo-2-1B has hidden size 2048, 8192 units and 16 heads of 128."""

import argparse
import re

import pytest

from megatron_remit.launch.memory import Placed, estimate
from megatron_remit.launch.parameters import Model, Part, _part
from megatron_remit.launch.plan_checks import place
from tests.launch.planned import PAPER

H, F, V = 2048, 8192, 100352
TOKENS = 4 * 4096
# Outputs of the four projections, the attention's and the gate's, and those of the norms: two of queries and keys.
HIDDEN, SPLIT = 4 * H, 3 * H + H + 2 * F + F + 2 * H
LAYER = 4 * H * H + 3 * H * F


def memory(planned, *flags, reference=False):
    training = [*PAPER, *map(str, flags), *(() if reference else ("--objective", "ntp"))]
    run = place(planned.folder / "base", planned.folder / "rl", 32, training)
    args, frozen = run.policy.args, list(run.frozen.values())
    return estimate(run.policy, frozen, args.global_batch_size // (args.micro_batch_size * args.data_parallel_size))


@pytest.mark.parametrize(("layers", "norm_bytes"), [("local", 8), ("transformer_engine", 0)])
def test_activations_are_what_each_layer_keeps_and_the_logits(layers, norm_bytes, planned):
    per_token = 16 * (2 * (HIDDEN + SPLIT) + norm_bytes * 4 * H) + 2 * V
    assert memory(planned, "--transformer-impl", layers).activations == pytest.approx(TOKENS * per_token)


def test_tensor_and_sequence_parallelism_divide_them(planned):
    te = ("--transformer-impl", "transformer_engine", "--tensor-model-parallel-size", 2)
    logits = V  # 2 bytes over 2 ranks
    along, whole = memory(planned, *te, "--sequence-parallel").activations, memory(planned, *te).activations
    assert along == pytest.approx(TOKENS * (16 * (HIDDEN + SPLIT) + logits), rel=1e-3)
    assert whole == pytest.approx(TOKENS * (16 * (2 * HIDDEN + SPLIT) + logits), rel=1e-3)


def test_full_recomputation_keeps_the_inputs_and_one_layer(planned):
    flags = ("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", 1)
    per_token = 16 * 2 * H + 2 * (HIDDEN + SPLIT) + 8 * 4 * H + 2 * V
    assert memory(planned, *flags).activations == pytest.approx(TOKENS * per_token)


def test_the_first_stage_is_the_fullest_of_a_pipeline(planned):
    """It keeps four microbatches of a quarter of the layers, and holds the embedding."""
    found = memory(planned, "--pipeline-model-parallel-size", 4, "--transformer-impl", "transformer_engine")
    assert found.activations == pytest.approx(4 * TOKENS * 4 * 2 * (HIDDEN + SPLIT))
    parameters = 4 * (LAYER + 4 * H) + V * H
    assert found.weights_and_optimizer == pytest.approx(parameters * (6 + 12 / 8))


def test_the_reference_has_weights_and_a_chunk_of_logits(planned):
    found = memory(planned, reference=True)
    parameters = 16 * (LAYER + 4 * H) + 2 * V * H + H
    assert found.reference_weights == 2 * parameters
    assert found.scoring == 96 * 2**20
    assert found.peak == found.weights_and_optimizer + 2 * parameters + found.activations
    kd = memory(planned, "--objective", "kd", reference=True)
    assert kd.hidden == 4 * TOKENS * H * 2


def test_fp32_and_one_optimizer_per_rank(planned):
    flags = [flag for flag in PAPER if flag not in ("--bf16", "--use-distributed-optimizer")]
    policy = place(planned.folder / "base", None, 32, [*flags, "--objective", "ntp"]).policy
    assert estimate(policy, [], 4).weights_and_optimizer == 16 * policy.model.parameters


def test_experts_are_divided_over_their_ranks(planned):
    """A layer of eight experts, of which a token meets two."""
    args = place(planned.folder / "base", None, 32, [*PAPER, "--objective", "ntp"]).policy
    shape = argparse.Namespace(**vars(args.args) | {"num_experts": 8, "moe_router_topk": 2})
    shape.expert_model_parallel_size = 8
    name = "decoder.layers.mlp.experts.experts.linear_fc{}.weight"
    parts = [_part(name.format(1), (F, H), shape)] * 16 + [_part(name.format(2), (H, F), shape)] * 8
    layer = sum(parts, Part())
    assert layer.experts == 8 * 3 * H * F and layer.active == 2 * 3 * H * F
    assert (layer.kept_split, layer.kept_whole) == (2 * 3 * F, 2 * H)
    model = Model("a", "b", (layer,), 0, 0, 0)
    shape.num_layers = 1
    found = estimate(Placed(shape, model, [1]), [], 4)
    assert found.weights_and_optimizer == pytest.approx(3 * H * F * (6 + 12 / 4))


def test_the_plan_prints_it(planned):
    text = planned.plan()
    found = memory(planned, reference=True)
    assert float(re.search(r"peak +([\d.]+)", text)[1]) == pytest.approx(found.peak / 2**30, abs=0.01)
