"""What Llama and its relatives have in common: the name table, the Megatron arguments, and what is refused.

Megatron's names are those of its Transformer Engine layers, which fuse a norm into the projection behind it
(``get_gpt_layer_with_transformer_engine_submodules``); the torch-native layers of megatron_remit.specs.native store the
same names. So one checkpoint serves both.

Axes: V vocabulary, H hidden, F feed-forward, Q all query heads, K all key (or value) heads, D one head.
"""

from typing import Any

from megatron_remit.convert.rope import scaling_arguments
from megatron_remit.convert.rules import GATE_UP, OUTPUT_LAYER, PADDED_VOCABULARY, QKV, SAME, Config, Rule
from megatron_remit.model_arguments import neutral

ATTENTION, MLP, LAYER = "decoder.layers.self_attention", "decoder.layers.mlp", "model.layers.{i}"

EMBEDDING = Rule(
    "embedding.word_embeddings.weight", {"model.embed_tokens.weight": "VH"}, PADDED_VOCABULARY, layered=False
)
QKV_PROJECTION = Rule(
    f"{ATTENTION}.linear_qkv.weight",
    {
        f"{LAYER}.self_attn.q_proj.weight": "QH",
        f"{LAYER}.self_attn.k_proj.weight": "KH",
        f"{LAYER}.self_attn.v_proj.weight": "KH",
    },
    QKV,
)
INPUT_NORM = Rule(f"{ATTENTION}.linear_qkv.layer_norm_weight", {f"{LAYER}.input_layernorm.weight": "H"}, SAME)
HEAD_NORMS = (
    Rule(f"{ATTENTION}.q_layernorm.weight", {f"{LAYER}.self_attn.q_norm.weight": "D"}, SAME),
    Rule(f"{ATTENTION}.k_layernorm.weight", {f"{LAYER}.self_attn.k_norm.weight": "D"}, SAME),
)
OUTPUT_PROJECTION = Rule(f"{ATTENTION}.linear_proj.weight", {f"{LAYER}.self_attn.o_proj.weight": "HQ"}, SAME)
MLP_NORM = Rule(f"{MLP}.linear_fc1.layer_norm_weight", {f"{LAYER}.post_attention_layernorm.weight": "H"}, SAME)
MLP_PROJECTIONS = (
    Rule(
        f"{MLP}.linear_fc1.weight",
        {f"{LAYER}.mlp.gate_proj.weight": "FH", f"{LAYER}.mlp.up_proj.weight": "FH"},
        GATE_UP,
    ),
    Rule(f"{MLP}.linear_fc2.weight", {f"{LAYER}.mlp.down_proj.weight": "HF"}, SAME),
)
HEAD = (
    Rule("decoder.final_layernorm.weight", {"model.norm.weight": "H"}, SAME, layered=False),
    Rule(OUTPUT_LAYER, {"lm_head.weight": "VH"}, PADDED_VOCABULARY, layered=False),
)
RULES = (EMBEDDING, QKV_PROJECTION, INPUT_NORM, OUTPUT_PROJECTION, MLP_NORM, *MLP_PROJECTIONS, *HEAD)

# Linear modules have an extra state in both implementations; attention and norms have one with Transformer Engine only.
MLP_EXTRA_STATE = {f"{MLP}.linear_fc1": True, f"{MLP}.linear_fc2": True}
ATTENTION_EXTRA_STATE = {f"{ATTENTION}.linear_proj": True}
EXTRA_STATE = {
    f"{ATTENTION}.linear_qkv": True,
    **ATTENTION_EXTRA_STATE,
    **MLP_EXTRA_STATE,
    "decoder.final_layernorm": False,
}
HEAD_NORMS_EXTRA_STATE = {f"{ATTENTION}.q_layernorm": True, f"{ATTENTION}.k_layernorm": True}

NEEDED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0}
ROPE_TYPES = ("default", "yarn")


def head_width(config: Config) -> int:
    """The width of one attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def dims(config: Config) -> dict[str, int]:
    """The size of each axis that the rules above name."""
    width = head_width(config)
    return {
        "V": config["vocab_size"],
        "H": config["hidden_size"],
        "F": config["intermediate_size"],
        "D": width,
        "Q": config["num_attention_heads"] * width,
        "K": config["num_key_value_heads"] * width,
        "groups": config["num_key_value_heads"],
    }


def arguments(config: Config) -> dict[str, Any]:
    """The model as Megatron arguments.

    Features that only some relatives have are stated too, with their neutral value, so that nothing of another model's
    command line or checkpoint stays in force.
    """
    plain = {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_query_groups": config["num_key_value_heads"],
        "group_query_attention": config["num_key_value_heads"] != config["num_attention_heads"],
        "kv_channels": head_width(config),
        "max_position_embeddings": config["max_position_embeddings"],
        "position_embedding_type": "rope",
        "rotary_base": int(config["rope_parameters"]["rope_theta"]),
        **neutral("rotary_percent", "rotary_interleaved", "use_rope_scaling", "rope_scaling_factor", "no_rope_freq"),
        "normalization": "RMSNorm",
        "layernorm_epsilon": config["rms_norm_eps"],
        **neutral("layernorm_zero_centered_gamma", "qk_layernorm", "multi_latent_attention"),
        "swiglu": True,
        "untie_embeddings_and_output_weights": not config["tie_word_embeddings"],
        "add_bias_linear": False,
        **neutral("add_qkv_bias"),
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }
    return plain | scaling_arguments(config["rope_parameters"], config["max_position_embeddings"])
