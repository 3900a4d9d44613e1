"""Youtu-LLM: Hugging Face ``YoutuForCausalLM``, a Llama whose attention is dense multi-latent attention (MLA).

RoPE rotates interleaved pairs, as Megatron's MLA always does; "rotary_interleaved" means something else there and stays
off. Transformer Engine fuses the norms of the compressed query and of the compressed key/value into the projections
that follow them. The input norm is followed by two projections and is a module of its own.

Axes in addition to those of llama_like: A compressed query, B compressed key/value, C the same with the rotary key,
Q all query heads, U all heads' keys (without the rotary part) and values, O all heads' values.
"""

from typing import Any

from megatron_remit.convert import llama_like
from megatron_remit.convert.llama_like import ATTENTION, LAYER
from megatron_remit.convert.rope import yarn_arguments
from megatron_remit.convert.rules import SAME, Config, Family, Rule

_NAMES = (
    ("decoder.layers.input_layernorm.weight", "input_layernorm.weight", "H"),
    (f"{ATTENTION}.linear_q_down_proj.weight", "self_attn.q_a_proj.weight", "AH"),
    (f"{ATTENTION}.linear_q_up_proj.layer_norm_weight", "self_attn.q_a_layernorm.weight", "A"),
    (f"{ATTENTION}.linear_q_up_proj.weight", "self_attn.q_b_proj.weight", "QA"),
    (f"{ATTENTION}.linear_kv_down_proj.weight", "self_attn.kv_a_proj_with_mqa.weight", "CH"),
    (f"{ATTENTION}.linear_kv_up_proj.layer_norm_weight", "self_attn.kv_a_layernorm.weight", "B"),
    (f"{ATTENTION}.linear_kv_up_proj.weight", "self_attn.kv_b_proj.weight", "UB"),
    (f"{ATTENTION}.linear_proj.weight", "self_attn.o_proj.weight", "HO"),
)
_PROJECTIONS = ("linear_q_down_proj", "linear_q_up_proj", "linear_kv_down_proj", "linear_kv_up_proj")


def _dims(config: Config) -> dict[str, int]:
    heads = config["num_attention_heads"]
    plain, rotary, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    return {
        "V": config["vocab_size"],
        "H": config["hidden_size"],
        "F": config["intermediate_size"],
        "A": config["q_lora_rank"],
        "B": config["kv_lora_rank"],
        "C": config["kv_lora_rank"] + rotary,
        "Q": heads * (plain + rotary),
        "U": heads * (plain + value),
        "O": heads * value,
    }


def _arguments(config: Config) -> dict[str, Any]:
    rope = config["rope_parameters"]
    # GPTModel's own YaRN is for other attention: here the attention computes its RoPE itself.
    stated = llama_like.arguments(config) | {"position_embedding_type": "rope"} | _latent_arguments(config)
    if rope["rope_type"] == "yarn":
        all_dim = float(rope.get("mscale_all_dim") or 0.0)
        stated |= {"rope_type": "yarn", **yarn_arguments(rope, config["max_position_embeddings"], all_dim)}
    return stated


def _latent_arguments(config: Config) -> dict[str, Any]:
    return {
        "multi_latent_attention": True,
        "qk_layernorm": True,
        "rope_type": "rope",
        "q_lora_rank": config["q_lora_rank"],
        "kv_lora_rank": config["kv_lora_rank"],
        "qk_head_dim": config["qk_nope_head_dim"],
        "qk_pos_emb_head_dim": config["qk_rope_head_dim"],
        "v_head_dim": config["v_head_dim"],
        "kv_channels": config["v_head_dim"],
    }


def _refuse(config: Config) -> str | None:
    for field in ("q_lora_rank", "v_head_dim"):
        if config[field] is None:
            return f"{field} is None"
    if config["num_key_value_heads"] != config["num_attention_heads"]:
        return f"num_key_value_heads is {config['num_key_value_heads']} of {config['num_attention_heads']} heads"
    if not config["rope_parameters"].get("truncate", True):
        return "truncate of rope_parameters is False"
    return None


FAMILY = Family(
    name="Youtu-LLM",
    architecture="YoutuForCausalLM",
    rules=(
        llama_like.EMBEDDING,
        *(Rule(megatron, {f"{LAYER}.{hf}": axes}, SAME) for megatron, hf, axes in _NAMES),
        llama_like.MLP_NORM,
        *llama_like.MLP_PROJECTIONS,
        *llama_like.HEAD,
    ),
    extra_state={
        "decoder.layers.input_layernorm": True,
        **{f"{ATTENTION}.{name}": True for name in _PROJECTIONS},
        **llama_like.ATTENTION_EXTRA_STATE,
        **llama_like.MLP_EXTRA_STATE,
        "decoder.final_layernorm": False,
    },
    arguments=_arguments,
    dims=_dims,
    # transformers uses this epsilon in the norms of the compressed query and key/value, whatever the config says, and
    # Megatron has one epsilon for all norms.
    needed=llama_like.NEEDED | {"rope_interleave": True, "rms_norm_eps": 1e-6},
    rope_types=llama_like.ROPE_TYPES,
    refuse=_refuse,
)
