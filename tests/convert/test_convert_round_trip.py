"""Hugging Face -> Megatron -> Hugging Face gives back every bit, and everything beside the weights."""

import json

import pytest
import torch
from megatron.core import dist_checkpointing
from safetensors.torch import load_file
from transformers import AutoTokenizer, Olmo2ForCausalLM

from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.convert.megatron_to_hf import export_hf
from tests.hf_models import make_olmo2

SHAPES = {
    "grouped_query_and_padded_vocabulary": {"num_key_value_heads": 2, "vocab_size": 515},
    "one_key_for_all_heads": {"num_key_value_heads": 1},
    "every_head_its_own_key": {"num_key_value_heads": 4, "vocab_size": 512},
    "wide_heads": {"head_dim": 16},
    "tied_embeddings": {"tie_word_embeddings": True},
}


def _tensors(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tensor_keeps_its_bits_and_dtype(tmp_path, shape, dtype):
    make_olmo2(tmp_path / "hf", dtype=dtype, tokenizer=False, **SHAPES[shape])
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


def test_tokenizer_and_chat_template_travel(tmp_path):
    make_olmo2(tmp_path / "hf", num_hidden_layers=1)
    (tmp_path / "hf" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    import_hf(tmp_path / "hf", tmp_path / "megatron")
    export_hf(tmp_path / "megatron", tmp_path / "megatron" / "hf", tmp_path / "back")
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("hf", "back")]
    assert tokenizers[0]("bana 12")["input_ids"] == tokenizers[1]("bana 12")["input_ids"]
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == "{{ messages[0].content }}"


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
