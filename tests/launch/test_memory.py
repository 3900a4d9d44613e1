"""The memory that a plan prints, by hand: OLMo-2-1B has hidden size 2048, 8192 units and 16 heads of 128."""

import argparse
import re

import pytest

from megatron_remit.launch.activations import Placed
from megatron_remit.launch.memory import estimate
from megatron_remit.launch.parameters import Model, Part, _part
from megatron_remit.launch.plan_checks import place
from tests.launch.planned import PAPER

H, F, V, HEADS, LENGTH = 2048, 8192, 100352, 16, 4096
TOKENS = 4 * LENGTH
# Outputs of the four projections, the attention's and the gate's, those of the norms (two of queries and keys), and the
# rotated queries and keys; with Megatron's own RoPE cosine and sine of both.
HIDDEN, SPLIT = 4 * H, 3 * H + H + 2 * F + F + 2 * H + 2 * H
TABLES = 4 * 2 * LENGTH * 128
# Logits, three hidden states around the last norm, and the gradient of the output layer's weight.
END = TOKENS * (2 * V + 3 * 2 * H) + 2 * V * H
# Four times the feed-forward width while it is computed, and the residual's gradient.
MOMENT = TOKENS * 2 * (4 * F + H)
LAYER = 4 * H * H + 3 * H * F


def kept(hidden=HIDDEN, split=SPLIT, tp_size=1):
    """Bytes of a layer: values, and one logarithm in fp32 per head and token."""
    return TOKENS * (2 * (hidden + split) + 4 * HEADS / tp_size) + TABLES


def memory(planned, *flags, reference=False):
    training = [*PAPER, *map(str, flags), *(() if reference else ("--objective", "ntp"))]
    run = place(planned.folder / "base", planned.folder / "rl" if reference else None, 32, training)
    args, frozen = run.policy.args, list(run.frozen.values())
    return estimate(run.policy, frozen, args.global_batch_size // (args.micro_batch_size * args.data_parallel_size))


@pytest.mark.parametrize("layers", ["local", "transformer_engine"])
def test_activations_are_what_each_layer_keeps_and_the_end(layers, planned):
    found = memory(planned, "--transformer-impl", layers)
    assert found.activations == pytest.approx(16 * kept() + END)


def test_fused_rope_has_no_tables_and_a_fused_weight_gradient_no_copy(planned):
    run = place(planned.folder / "base", None, 32, [*PAPER, "--objective", "ntp"])
    run.policy.args.apply_rope_fusion = run.policy.args.gradient_accumulation_fusion = True
    found = estimate(run.policy, [], 4)
    assert found.activations == pytest.approx(16 * (kept() - TABLES) + END - 2 * V * H)


def test_tensor_and_sequence_parallelism_divide_them(planned):
    two = ("--tensor-model-parallel-size", 2)
    along, whole = memory(planned, *two, "--sequence-parallel").activations, memory(planned, *two).activations
    # The output layer's gathered input and its gradient are whole.
    assert along == pytest.approx(16 * kept(HIDDEN / 2, SPLIT / 2, 2) + END / 2 + TOKENS * 3 * H)
    assert whole == pytest.approx(16 * kept(HIDDEN, SPLIT / 2, 2) + END / 2 + TOKENS * 3 * H)


def test_full_recomputation_keeps_the_inputs_and_one_layer(planned):
    flags = ("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", 1)
    assert memory(planned, *flags).activations == pytest.approx(16 * TOKENS * 2 * H + max(kept() + MOMENT, END))


def test_the_first_stage_is_the_fullest_of_a_pipeline(planned):
    """It keeps four microbatches of a quarter of the layers, and holds the embedding."""
    found = memory(planned, "--pipeline-model-parallel-size", 4)
    assert found.activations == pytest.approx(4 * 4 * kept() + MOMENT)
    parameters = 4 * (LAYER + 4 * H) + V * H
    assert found.weights_and_optimizer == pytest.approx(parameters * (6 + 12 / 8))


def test_virtual_stages_keep_more_microbatches(planned):
    """Eight chunks of two layers, two on a rank. The first rank warms up 3 * 2 + 4 chunks, and runs one more."""
    pipeline = ("--pipeline-model-parallel-size", 4, "--num-layers-per-virtual-pipeline-stage", 2)
    found = memory(planned, *pipeline, "--micro-batch-size", 1, "--global-batch-size", 128)
    assert found.activations == pytest.approx((11 * 2 * (kept() - TABLES) + MOMENT) / 4 + 11 * 2 * TABLES)


def test_the_reference_has_weights_and_a_layers_values(planned):
    found = memory(planned, reference=True)
    parameters = 16 * (LAYER + 4 * H) + 2 * V * H + H
    assert found.reference_weights == 2 * parameters
    assert found.scoring == pytest.approx(2 * (MOMENT + 2 * TOKENS * 2 * H))  # microbatches of 8, the policy's are 4
    assert found.peak == found.weights_and_optimizer + 2 * parameters + found.activations
    offloaded = memory(planned, "--reference-offload", reference=True)
    assert offloaded.peak == found.peak - 2 * parameters
    kd = memory(planned, "--objective", "kd", reference=True)
    assert kd.hidden == 4 * TOKENS * H * 2
    assert kd.activations == pytest.approx(found.activations + 2 * TOKENS * 2 * V - 2 * V * H)


def test_fp32_and_one_optimizer_per_rank(planned):
    flags = [flag for flag in PAPER if flag not in ("--bf16", "--use-distributed-optimizer")]
    policy = place(planned.folder / "base", None, 32, [*flags, "--objective", "ntp"]).policy
    assert estimate(policy, [], 4).weights_and_optimizer == 16 * policy.model.parameters


def test_experts_are_divided_over_their_ranks(planned):
    """A layer of eight experts, of which a token meets two."""
    args = place(planned.folder / "base", None, 32, [*PAPER, "--objective", "ntp"]).policy
    shape = argparse.Namespace(**vars(args.args) | {"num_experts": 8, "moe_router_topk": 2, "moe_ffn_hidden_size": F})
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
