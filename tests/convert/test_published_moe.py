"""The published models with experts are accepted as they are, and the name tables account for all their parameters."""

import json
import math

import pytest
from megatron.training.theoretical_memory_usage import compute_weight_and_optimizer_memory

from megatron_remit import cpu
from megatron_remit.convert.families import read_config
from megatron_remit.convert.rules import in_layer_order
from tests.convert.published_moe import PUBLISHED
from tests.test_bad_input import parsed

cpu.install()


@pytest.fixture(params=PUBLISHED)
def published(request, tmp_path):
    config, parameters = PUBLISHED[request.param]
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_config(tmp_path), parameters


def test_a_published_config_is_accepted_and_its_tensors_add_up_to_the_published_size(published):
    (family, config), parameters = published
    dims, layers = family.dims(config), config["num_hidden_layers"]
    tensors = {}
    for rule, layer in in_layer_order(family.rules_for(config), layers):
        tensors |= rule.hf_shapes(dims, layer)
    assert sum(map(math.prod, tensors.values())) == parameters
    assert sum(".experts." in name for name in tensors) == 3 * layers * dims["experts"]


def test_megatron_estimates_the_memory_of_a_published_model_by_the_same_count(published):
    (family, config), parameters = published
    args = parsed([])
    vars(args).update(family.arguments(config) | {"padded_vocab_size": config["vocab_size"]})
    args.expert_tensor_parallel_size = 1
    # 18 bytes per weight without the distributed optimizer. Megatron counts norms only roughly.
    assert compute_weight_and_optimizer_memory(args) / 18 == pytest.approx(parameters, rel=2e-4)


def test_every_layer_has_experts_and_the_router_divides_as_the_config_says(published):
    (family, config), _ = published
    arguments = family.arguments(config)
    assert arguments["moe_layer_freq"] == 1
    assert arguments["moe_router_pre_softmax"] is (family.name == "OLMoE")
    assert arguments["moe_ffn_hidden_size"] == family.dims(config)["X"]
