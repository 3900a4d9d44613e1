"""The torch-native layers compute what Megatron's own local layers compute, at every layout, under the same names."""

import pytest
import torch
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from megatron.training.models.gpt import GPTModelConfig

from megatron_remit import cpu
from megatron_remit.errors import UserError
from megatron_remit.specs.native import left_to_megatron, native_layer_spec
from tests.ranks import run_ranks
from tests.specs.native_ranks import CASES, LAYOUTS, compare

cpu.install()

# Megatron's Transformer Engine layers of multi-latent attention: only the input norm stands alone.
LATENT_NAMES = [
    "decoder.final_layernorm.weight",
    "decoder.layers.input_layernorm.weight",
    "decoder.layers.mlp.linear_fc1.layer_norm_weight",
    "decoder.layers.mlp.linear_fc1.weight",
    "decoder.layers.mlp.linear_fc2.weight",
    "decoder.layers.self_attention.linear_kv_down_proj.weight",
    "decoder.layers.self_attention.linear_kv_up_proj.layer_norm_weight",
    "decoder.layers.self_attention.linear_kv_up_proj.weight",
    "decoder.layers.self_attention.linear_proj.weight",
    "decoder.layers.self_attention.linear_q_down_proj.weight",
    "decoder.layers.self_attention.linear_q_up_proj.layer_norm_weight",
    "decoder.layers.self_attention.linear_q_up_proj.weight",
    "embedding.word_embeddings.weight",
    "output_layer.weight",
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """One start of two gloo ranks serves every test here."""
    folder = tmp_path_factory.mktemp("native")
    run_ranks(2, compare, folder)
    return [torch.load(folder / f"report{rank}.pt") for rank in range(2)]


# Megatron's own attention forgets the documents' mask where there is a window.
ALIKE = [(case, mask) for case in CASES for mask in ("none", "documents") if (case, mask) != ("windows", "documents")]


@pytest.mark.parametrize(("case", "mask"), [one for one in ALIKE if one[0] != "latent_narrow_values"])
def test_logits_and_gradients_are_those_of_megatrons_own_layers(reports, case, mask):
    found = reports[0][case, "megatron", mask]
    assert found["logits"] < 1e-5
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("mask", ["none", "documents"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_of_two_ranks_are_those_of_one(reports, case, layout, mask):
    for report in reports:
        assert report[case, layout, mask]["logits"] < 1e-5
        assert max(report[case, layout, mask].values()) < 1e-4, report[case, layout, mask]


@pytest.mark.parametrize("case", ["llama", "qwen3", "smollm3", "bias_and_layernorm"])
def test_a_checkpoint_has_the_names_of_megatrons_own_layers(reports, case):
    """Megatron's local spec maps its norms to the names of its Transformer Engine spec."""
    assert reports[0][case, "names"] == reports[0][case, "megatron names"]
    assert "decoder.layers.self_attention.linear_qkv.layer_norm_weight" in reports[0][case, "names"]


def test_a_checkpoint_of_latent_attention_has_the_names_of_the_transformer_engine_layers(reports):
    assert reports[0]["latent", "names"] == LATENT_NAMES


def model(**fields):
    kind = MLATransformerConfig if fields.get("multi_latent_attention") else TransformerConfig
    fields = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "attention_dropout": 0.0,
        "normalization": "RMSNorm",
        "transformer_impl": "local",
    } | fields
    return GPTModelConfig(transformer=kind(**fields), vocab_size=64)


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"attention_dropout": 0.1}, "--attention-dropout"),
        ({"softmax_type": "off-by-one"}, "--softmax-type"),
        ({"attention_backend": AttnBackend.local}, "--attention-backend local"),
    ],
)
def test_a_feature_of_megatrons_own_layers_gets_them(fields, flag):
    assert left_to_megatron(model()) is None
    assert left_to_megatron(model(**fields)).startswith(flag)
    if fields == {"attention_dropout": 0.1}:
        layer = native_layer_spec(model(**fields))
        assert layer.submodules.self_attention.submodules.core_attention is DotProductAttention


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (
            {"multi_latent_attention": True, "attention_dropout": 0.1},
            "--multi-latent-attention with --attention-dropout",
        ),
        ({"multi_latent_attention": True, "normalization": "LayerNorm"}, "--normalization RMSNorm"),
        ({"multi_latent_attention": True, "qk_layernorm": True, "q_lora_rank": None}, "--q-lora-rank"),
        ({"layernorm_zero_centered_gamma": True}, "--apply-layernorm-1p"),
        ({"normalization": "L2Norm"}, "--normalization L2Norm"),
    ],
)
def test_what_no_local_layer_can_do_is_refused_by_its_flag(fields, named):
    with pytest.raises(UserError, match=named):
        native_layer_spec(model(**fields))
