"""What docs/hybrid-model.md says of Megatron's HybridModel: a new Megatron in which it is no longer so fails here."""

import inspect

import pytest
import torch
from megatron.core.models.hybrid.hybrid_model import HybridModel

from tests.ranks import run_ranks
from tests.specs.hybrid_ranks import compare


@pytest.fixture(scope="module")
def found(material, tmp_path_factory):
    report = tmp_path_factory.mktemp("hybrid") / "report.pt"
    run_ranks(1, compare, material.policy, report)
    return torch.load(report)


def test_the_layers_of_this_project_in_a_hybrid_model_give_the_logits_of_the_gpt_model(found):
    gpt_BSV, hybrid_BSV = found["logits"]
    assert torch.equal(hybrid_BSV, gpt_BSV) and gpt_BSV.std() > 0.1


def test_a_subclass_can_offer_the_output_processor(found):
    assert torch.equal(found["processed"], found["logits"][0])
    assert "output_processor" not in inspect.signature(HybridModel.forward).parameters


def test_two_renamings_carry_each_weight_and_its_gradient_over(found):
    gpt, hybrid = found["gradients"]
    assert len(gpt) == 35 and gpt.keys() == hybrid.keys()
    assert all(torch.equal(gpt[name], hybrid[name]) for name in gpt)


def test_without_transformer_engine_there_is_no_hybrid_model(found):
    assert "Transformer Engine is not installed" in found["error"]


def test_a_hybrid_checkpoint_has_other_names_and_shapes(found):
    gpt, hybrid = found["stored"]
    assert gpt["decoder.layers.self_attention.linear_qkv.weight"] == (4, 64, 32)
    assert hybrid["decoder.layers.0.self_attention.linear_qkv.weight"] == (64, 32)
    assert {name for name in gpt if "layers" in name}.isdisjoint(hybrid)
