"""Mixtures of experts: the auxiliary loss has transformers' gradient, and scoring neither has nor logs one."""

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training.models.gpt import GPTModelConfig

from megatron_remit import cpu
from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.errors import UserError
from megatron_remit.specs.experts import StableTopKRouter, _StableTopK, expert_pattern
from megatron_remit.specs.olmoe import olmoe_layer_spec
from tests.hf_models import make_model
from tests.ranks import run_ranks
from tests.specs.expert_ranks import one_step

cpu.install()

COEFFICIENT, CHOSEN = 0.1, 2


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """One layer: transformers pools the router's figures over all layers before it multiplies them, Megatron does not.

    transformers counts an expert's tokens out of all tokens, Megatron out of all choices: its coefficient is as many
    times larger as a token has experts.
    """
    folder = tmp_path_factory.mktemp("experts")
    model = make_model("qwen3_moe", folder / "hf", tokenizer=False, num_hidden_layers=1, vocab_size=512)
    model.router_aux_loss_coef = COEFFICIENT
    ids, labels = torch.randint(0, 512, (2, 2, 16), generator=torch.Generator().manual_seed(3))
    out = model(ids, output_router_logits=True)
    loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
    (loss + COEFFICIENT * out.aux_loss).backward()
    import_hf(folder / "hf", folder / "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(folder / "hf_gradients")
    import_hf(folder / "hf_gradients", folder / "gradients")
    torch.save({"ids": ids, "labels": labels}, folder / "truth.pt")
    run_ranks(1, one_step, folder, COEFFICIENT * CHOSEN)
    return torch.load(folder / "report.pt") | {"hf loss": loss.item(), "hf aux": out.aux_loss.item()}


def test_the_gradient_of_a_step_is_that_of_transformers_loss_with_its_auxiliary_part(report):
    assert report["loss"] == pytest.approx(report["hf loss"], rel=1e-6)
    assert sum(report["load balancing"]) * CHOSEN == pytest.approx(report["hf aux"], rel=1e-6)
    assert "decoder.layers.0.mlp.router.weight" in report["gradients"]
    assert max(report["gradients"].values()) < 1e-4, report["gradients"]


def test_a_pass_for_scores_records_no_auxiliary_loss_and_gives_the_bits_of_training(report):
    assert report["recorded while scoring"] == []
    assert report["bits without gradients"]


def test_megatrons_own_layers_choose_experts_with_the_same_router(report):
    """What a run with Transformer Engine gets; here on Megatron's local layers, whose spec is built alike."""
    assert report["router of megatron's own layer"] == StableTopKRouter.__name__


def test_the_first_of_equal_experts_is_chosen_whether_gradients_are_recorded_or_not():
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    expected = ([[3.0, 3.0], [0.0, 0.0]], [[1, 2], [0, 1]])
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded):
            values, indices = _StableTopK.get_replay_topk(scores, 2, None, None, None)
        assert (values.tolist(), indices.tolist()) == expected


def model(**fields):
    values = {"num_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "add_bias_linear": False}
    values |= {"num_moe_experts": 4, "moe_ffn_hidden_size": 16, "normalization": "RMSNorm"}
    transformer = TransformerConfig(**values | fields)
    transformer.transformer_impl = "local"
    return GPTModelConfig(transformer=transformer, vocab_size=512)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"num_moe_experts": None, "moe_ffn_hidden_size": None}, [False] * 4),
        ({}, [True] * 4),
        ({"moe_layer_freq": 2}, [True, False, True, False]),
        ({"moe_layer_freq": [0, 1, 1, 1]}, [False, True, True, True]),
    ],
)
def test_which_layers_have_experts(fields, pattern):
    assert expert_pattern(model(**fields).transformer) == pattern


def test_olmoe_without_experts_is_refused():
    with pytest.raises(UserError, match="OLMoE has experts in every layer: pass --num-experts"):
        olmoe_layer_spec(model(moe_layer_freq=2))
