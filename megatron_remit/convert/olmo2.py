"""OLMo-2: Hugging Face ``Olmo2ForCausalLM`` <-> the layers of megatron_remit.specs.olmo2.

Axes: V vocabulary, H hidden, F feed-forward, Q all query heads, K all key (or value) heads.
"""

from typing import Any

from megatron_remit.convert.rules import GATE_UP, PADDED_VOCABULARY, QKV, SAME, Family, Rule
from megatron_remit.errors import UserError

_ATTENTION, _MLP, _LAYER = "decoder.layers.self_attention", "decoder.layers.mlp", "model.layers.{i}"

_RULES = (
    Rule("embedding.word_embeddings.weight", {"model.embed_tokens.weight": "VH"}, PADDED_VOCABULARY, layered=False),
    Rule(
        f"{_ATTENTION}.linear_qkv.weight",
        {
            f"{_LAYER}.self_attn.q_proj.weight": "QH",
            f"{_LAYER}.self_attn.k_proj.weight": "KH",
            f"{_LAYER}.self_attn.v_proj.weight": "KH",
        },
        QKV,
    ),
    Rule(f"{_ATTENTION}.q_norm.weight", {f"{_LAYER}.self_attn.q_norm.weight": "Q"}, SAME),
    Rule(f"{_ATTENTION}.k_norm.weight", {f"{_LAYER}.self_attn.k_norm.weight": "K"}, SAME),
    Rule(f"{_ATTENTION}.linear_proj.weight", {f"{_LAYER}.self_attn.o_proj.weight": "HQ"}, SAME),
    Rule(f"{_ATTENTION}.post_norm.weight", {f"{_LAYER}.post_attention_layernorm.weight": "H"}, SAME),
    Rule(
        f"{_MLP}.linear_fc1.weight",
        {f"{_LAYER}.mlp.gate_proj.weight": "FH", f"{_LAYER}.mlp.up_proj.weight": "FH"},
        GATE_UP,
    ),
    Rule(f"{_MLP}.linear_fc2.weight", {f"{_LAYER}.mlp.down_proj.weight": "HF"}, SAME),
    Rule(f"{_MLP}.post_norm.weight", {f"{_LAYER}.post_feedforward_layernorm.weight": "H"}, SAME),
    Rule("decoder.final_layernorm.weight", {"model.norm.weight": "H"}, SAME, layered=False),
    Rule("output_layer.weight", {"lm_head.weight": "VH"}, PADDED_VOCABULARY, layered=False),
)


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """RoPE settings of both config generations: ``rope_parameters`` and the older ``rope_theta``/``rope_scaling``."""
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    return {"rope_type": "default"} | (config.get("rope_scaling") or {}) | rope


def _check(config: dict[str, Any], where: str) -> None:
    rope = _rope(config)
    unsupported = {
        "attention_bias": (bool(config.get("attention_bias", False)), False),
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "attention_dropout": (config.get("attention_dropout", 0.0), 0.0),
        "sliding_window": (config.get("sliding_window"), None),
        "rope_type": (rope.get("type", rope["rope_type"]), "default"),
    }
    for field, (found, needed) in unsupported.items():
        if found != needed:
            raise UserError(f"{where}: {field} is {found!r}; the OLMo-2 conversion needs {needed!r}")
    if "sliding_attention" in (config.get("layer_types") or []):
        raise UserError(f"{where}: layer_types has sliding_attention; the OLMo-2 conversion needs full attention")
    theta = float(rope["rope_theta"])
    if not theta.is_integer():
        raise UserError(f"{where}: rope_theta is {theta}; Megatron's --rotary-base takes whole numbers")
    for field in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(config.get(field), int):
            raise UserError(f"{where}: {field} is {config.get(field)!r}; expected a whole number")


def _key_value_heads(config: dict[str, Any]) -> int:
    return config.get("num_key_value_heads") or config["num_attention_heads"]


def _head_width(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _dims(config: dict[str, Any]) -> dict[str, int]:
    width = _head_width(config)
    return {
        "V": config["vocab_size"],
        "H": config["hidden_size"],
        "F": config["intermediate_size"],
        "Q": config["num_attention_heads"] * width,
        "K": _key_value_heads(config) * width,
        "groups": _key_value_heads(config),
    }


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_query_groups": _key_value_heads(config),
        "group_query_attention": _key_value_heads(config) != config["num_attention_heads"],
        "kv_channels": _head_width(config),
        "max_position_embeddings": config.get("max_position_embeddings", 2048),
        "position_embedding_type": "rope",
        "rotary_base": int(_rope(config)["rope_theta"]),
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "normalization": "RMSNorm",
        "norm_epsilon": config.get("rms_norm_eps", 1e-5),
        "swiglu": True,
        "untie_embeddings_and_output_weights": not config.get("tie_word_embeddings", False),
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "spec": ["megatron_remit.specs.olmo2", "olmo2_layer_spec"],
    }


FAMILY = Family(
    architecture="Olmo2ForCausalLM",
    rules=_RULES,
    tied_away=frozenset({"output_layer.weight"}),
    modules_with_extra_state=(
        f"{_ATTENTION}.linear_qkv",
        f"{_ATTENTION}.linear_proj",
        f"{_ATTENTION}.core_attention",
        f"{_MLP}.linear_fc1",
        f"{_MLP}.linear_fc2",
    ),
    check=_check,
    arguments=_arguments,
    dims=_dims,
)
