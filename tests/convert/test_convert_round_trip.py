"""Hugging Face -> Megatron -> Hugging Face gives back every bit, and every file next to the weights."""

import argparse
import json
import shutil

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.training.arguments import add_megatron_arguments
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, Olmo2ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_remit.arguments import add_remit_arguments
from megatron_remit.convert import llama, megatron_to_hf
from megatron_remit.convert.families import FAMILIES, read_config
from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.convert.megatron_io import CheckpointReader
from megatron_remit.convert.megatron_to_hf import export_hf
from megatron_remit.errors import UserError
from tests.hf_models import LLAMA3_ROPE, SHAPES, YARN_ROPE, make_model, make_olmo2

CASES = {family: (family, {}) for family in SHAPES} | {
    "one_key_for_all_heads": ("olmo2", {"num_key_value_heads": 1}),
    "every_head_its_own_key": ("llama", {"num_key_value_heads": 8, "vocab_size": 512}),
    "wide_heads": ("olmo2", {"head_dim": 16}),
    "windows_and_plain_rope": ("olmo3", {"rope_parameters": None, "layer_types": ["sliding_attention"] * 4}),
    "untied_qwen2_with_yarn": ("qwen2", {"tie_word_embeddings": False} | YARN_ROPE),
    "tied_olmo2": ("olmo2", {"tie_word_embeddings": True}),
    "tied_llama_with_rope_scaling": ("llama", {"tie_word_embeddings": True} | LLAMA3_ROPE),
    "untied_smollm3": ("smollm3", {"tie_word_embeddings": False}),
    "some_layers_without_experts": ("qwen3_moe", {"mlp_only_layers": [0], "decoder_sparse_step": 2}),
    "narrow_values": ("youtu", {"v_head_dim": 6}),
}
# What Megatron 0.19.2 asks of a checkpoint under Transformer Engine, found by reading its layer specs
# (get_gpt_layer_with_transformer_engine_submodules) and Transformer Engine's modules: names after "decoder.layers.".
# Every module of Transformer Engine has an extra state, its norms and its attention included.
TE_MLP = ["mlp.linear_fc1.layer_norm_weight", "mlp.linear_fc1.weight", "mlp.linear_fc2.weight"]
TE_ATTENTION = [
    "self_attention.linear_proj.weight",
    "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.linear_qkv.weight",
]
TE_LATENT = [
    "input_layernorm.weight",
    "self_attention.linear_kv_down_proj.weight",
    "self_attention.linear_kv_up_proj.layer_norm_weight",
    "self_attention.linear_kv_up_proj.weight",
    "self_attention.linear_proj.weight",
    "self_attention.linear_q_down_proj.weight",
    "self_attention.linear_q_up_proj.layer_norm_weight",
    "self_attention.linear_q_up_proj.weight",
]
# With experts the norm before the router stands alone, and TEGroupedMLP and SequentialMLP share their names: "experts"
# twice (``replace_prefix_for_sharding`` in both).
TE_EXPERTS = [
    "mlp.experts.experts.linear_fc1.weight",
    "mlp.experts.experts.linear_fc2.weight",
    "mlp.router.weight",
    "pre_mlp_layernorm.weight",
]
TE_LAYERS = {
    "llama": TE_MLP + TE_ATTENTION,
    "qwen2": [*TE_MLP, *TE_ATTENTION, "self_attention.linear_qkv.bias"],
    "qwen3": [*TE_MLP, *TE_ATTENTION, "self_attention.k_layernorm.weight", "self_attention.q_layernorm.weight"],
    "qwen3_moe": [
        *TE_EXPERTS,
        *TE_ATTENTION,
        "self_attention.k_layernorm.weight",
        "self_attention.q_layernorm.weight",
    ],
    # The norms of whole width are this project's with every implementation.
    "olmoe": [*TE_EXPERTS, *TE_ATTENTION, "self_attention.k_norm.weight", "self_attention.q_norm.weight"],
    "smollm3": TE_MLP + TE_ATTENTION,
    "youtu": TE_MLP + TE_LATENT,
}


# The router is a parameter of Megatron's own with both, the norms of whole width are this project's.
WITHOUT_EXTRA_STATE = {"mlp.router", "self_attention.k_norm", "self_attention.q_norm"}


def _tensors(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_every_tensor_keeps_its_bits_and_dtype(tmp_path, case, dtype):
    family, overrides = CASES[case]
    make_model(family, tmp_path / "hf", dtype=dtype, tokenizer=False, **overrides)
    import_hf(tmp_path / "hf", tmp_path / "megatron")
    export_hf(tmp_path / "megatron", tmp_path / "megatron" / "hf", tmp_path / "back")
    before, after = _tensors(tmp_path / "hf"), _tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == dtype and torch.equal(after[name], value), name
    config = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("hf", "back")]
    assert config[0] == config[1]


def test_shards_are_read_and_written_with_an_index(tmp_path):
    make_olmo2(tmp_path / "hf", max_shard_size="60KB", tokenizer=False)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    import_hf(tmp_path / "hf", tmp_path / "megatron")
    export_hf(tmp_path / "megatron", tmp_path / "hf", tmp_path / "back", shard_bytes=80_000)
    files = sorted((tmp_path / "back").glob("*.safetensors"))
    assert len(files) > 2 and all(file.stat().st_size < 90_000 for file in files)
    original, returned = (Olmo2ForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("hf", "back"))
    assert all(torch.equal(original[name], returned[name]) for name in original)


def test_tokenizer_chat_template_and_generation_config_travel(tmp_path):
    make_olmo2(tmp_path / "hf", num_hidden_layers=1)
    (tmp_path / "hf" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    GenerationConfig(eos_token_id=[0, 7], temperature=0.6, do_sample=True).save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "megatron")
    export_hf(tmp_path / "megatron", tmp_path / "megatron" / "hf", tmp_path / "back")
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("hf", "back")]
    assert tokenizers[0]("bana 12")["input_ids"] == tokenizers[1]("bana 12")["input_ids"]
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == "{{ messages[0].content }}"
    generation = GenerationConfig.from_pretrained(tmp_path / "back")
    assert generation.eos_token_id == [0, 7] and generation.temperature == 0.6


def test_padding_rows_are_zero_and_the_shape_is_in_the_checkpoint(tmp_path):
    make_olmo2(tmp_path / "hf", tokenizer=False)
    import_hf(tmp_path / "hf", tmp_path / "megatron")
    release = str(tmp_path / "megatron" / "release")
    embedding = torch.ones(640, 32)
    torch.distributed.checkpoint.load(
        {"embedding.word_embeddings.weight": embedding}, checkpoint_id=release, no_dist=True
    )
    assert embedding[515:].eq(0).all() and embedding[:515].ne(0).any(dim=1).all()
    stored = vars(dist_checkpointing.load_common_state_dict(release)["args"])
    expected = {
        "num_layers": 4,
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "num_query_groups": 2,
        "group_query_attention": True,
        "rotary_base": 5000,
        "layernorm_epsilon": 1e-5,
        "normalization": "RMSNorm",
        "spec": ["megatron_remit.specs.olmo2", "olmo2_layer_spec"],
        "remit_vocab_size": 515,
        "remit_architecture": "Olmo2ForCausalLM",
    }
    assert {name: stored[name] for name in expected} == expected
    assert "seq_length" not in stored and "padded_vocab_size" not in stored


@pytest.mark.parametrize("family", TE_LAYERS)
def test_a_checkpoint_has_every_name_that_transformer_engine_layers_ask_for(tmp_path, family):
    model = make_model(family, tmp_path / "hf", tokenizer=False)
    import_hf(tmp_path / "hf", tmp_path / "megatron")
    stored = FileSystemReader(str(tmp_path / "megatron" / "release")).read_metadata().state_dict_metadata
    tensors = {name for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
    ends = {"embedding.word_embeddings.weight", "decoder.final_layernorm.weight"}
    ends |= set() if model.config.tie_word_embeddings else {"output_layer.weight"}
    assert tensors == ends | {f"decoder.layers.{name}" for name in TE_LAYERS[family]}
    modules = {name.rsplit(".", 1)[0] for name in TE_LAYERS[family]}
    modules -= WITHOUT_EXTRA_STATE
    states = {
        f"decoder.layers.{module}._extra_state/shard_{place}"
        for module in modules
        for layer in range(4)
        for place in ([f"{layer}.{expert}_4.4" for expert in range(4)] if ".experts." in module else [f"{layer}_4"])
    }
    states.add("decoder.final_layernorm._extra_state/shard_0_1")
    assert stored.keys() - tensors == states | {"common_state/shard_0_1"}


def test_older_files_with_rope_frequencies_in_them_are_read(tmp_path):
    make_model("llama", tmp_path / "hf", tokenizer=False)
    tensors = _tensors(tmp_path / "hf")
    extra = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(4)}
    save_file(tensors | extra, tmp_path / "hf" / "model.safetensors")
    import_hf(tmp_path / "hf", tmp_path / "megatron")
    export_hf(tmp_path / "megatron", tmp_path / "hf", tmp_path / "back")
    assert _tensors(tmp_path / "back").keys() == tensors.keys()


def test_rope_layers_change_sign_between_the_two_worlds(tmp_path):
    make_model("smollm3", tmp_path / "hf", tokenizer=False, num_hidden_layers=5, no_rope_layers=[1, 0, 1, 1, 0])
    import_hf(tmp_path / "hf", tmp_path / "megatron")
    stored = dist_checkpointing.load_common_state_dict(str(tmp_path / "megatron" / "release"))["args"]
    assert stored.no_rope_freq == [0, 1, 0, 0, 1]


def test_a_number_of_layers_is_the_same_as_the_list_that_it_stands_for(tmp_path, monkeypatch):
    """As a run has it that was given --window-attn-skip-freq 4."""
    make_model("olmo3", tmp_path / "hf", tokenizer=False)
    import_hf(tmp_path / "hf", tmp_path / "megatron")

    def reader(*arguments):
        found = CheckpointReader(*arguments)
        found.arguments.window_attn_skip_freq = number
        return found

    monkeypatch.setattr(megatron_to_hf, "CheckpointReader", reader)
    number = 4
    export_hf(tmp_path / "megatron", tmp_path / "hf", tmp_path / "back")
    number = 2
    with pytest.raises(UserError, match=r"window_attn_skip_freq = \[1, 0, 1, 0\], .* \[1, 1, 1, 0\]"):
        export_hf(tmp_path / "megatron", tmp_path / "hf", tmp_path / "other")


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_rope_frequencies_are_those_of_transformers_bit_for_bit(tmp_path, factor):
    rope = LLAMA3_ROPE["rope_parameters"] | {"factor": factor}
    config = LlamaConfig(hidden_size=4096, num_attention_heads=32, max_position_embeddings=131072, rope_parameters=rope)
    stored = llama.FAMILY.arguments(config.to_dict())
    assert stored["use_rope_scaling"]
    ours = RotaryEmbedding(
        stored["kv_channels"],
        stored["rotary_percent"],
        rotary_base=stored["rotary_base"],
        rope_scaling=True,
        rope_scaling_factor=stored["rope_scaling_factor"],
        use_cpu_initialization=True,
    )
    assert torch.equal(ours.inv_freq, ROPE_INIT_FUNCTIONS["llama3"](config)[0])


def test_every_family_is_in_the_tables_that_the_tests_run_over():
    assert {model_class.__name__ for model_class, _ in SHAPES.values()} == FAMILIES.keys()


@pytest.mark.parametrize("family", SHAPES)
def test_every_argument_that_an_import_stores_is_one_that_megatron_knows(tmp_path, family):
    parser = add_remit_arguments(add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)))
    known = vars(parser.parse_args([]))
    make_model(family, tmp_path / "hf", tokenizer=False)
    arguments = FAMILIES[SHAPES[family][0].__name__].arguments(read_config(tmp_path / "hf")[1])
    assert arguments.keys() <= known.keys()


def test_experts_fused_as_transformers_holds_them_are_read_as_published_ones(tmp_path):
    model = make_model("qwen3_moe", tmp_path / "hf", tokenizer=False)
    shutil.copytree(tmp_path / "hf", tmp_path / "fused")
    save_file(model.state_dict(), tmp_path / "fused" / "model.safetensors")
    assert not any(".experts.0." in name for name in _tensors(tmp_path / "fused"))
    import_hf(tmp_path / "fused", tmp_path / "megatron")
    export_hf(tmp_path / "megatron", tmp_path / "fused", tmp_path / "back")
    before, after = _tensors(tmp_path / "hf"), _tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
