"""The config.json of every published model of every family is accepted without a flag, and its tensors are counted."""

import math

import pytest

from megatron_remit.convert.families import FAMILIES, read_config
from megatron_remit.convert.rules import in_layer_order
from tests.convert.published_configs import PUBLISHED
from tests.convert.published_moe import PUBLISHED as WITH_EXPERTS


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_accepted_and_its_tensors_have_the_published_number_of_parameters(name, tmp_path):
    family, config = read_config(PUBLISHED[name].write(tmp_path))
    arguments, dims = family.arguments(config), family.dims(config)
    rules = in_layer_order(family.rules_for(config), arguments["num_layers"])
    shapes = [shape for rule, layer in rules for shape in rule.hf_shapes(dims, layer or 0).values()]
    assert sum(map(math.prod, shapes)) == PUBLISHED[name].parameters


def test_every_family_has_published_configs():
    configs = [*(model.config for model in PUBLISHED.values()), *(config for config, _ in WITH_EXPERTS.values())]
    assert {config["architectures"][0] for config in configs} == FAMILIES.keys()
