"""What no family can represent: changes of a random model's config.json, and the words that name them in the error."""

from tests.hf_models import LLAMA3_ROPE, YARN_ROPE


def _yarn(**fields):
    return {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16} | fields


def _olmo3_rope(full=None, sliding=None):
    """OLMo-3's RoPE for each kind of layer, with these changes."""
    plain = {"rope_type": "default", "rope_theta": 5000.0}
    return {"rope_parameters": {"full_attention": plain | (full or {}), "sliding_attention": plain | (sliding or {})}}


UNSUPPORTED = {
    "llama": [
        ({"sliding_window": 4096}, "sliding_window is 4096.*full attention"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
            "'linear'.*'yarn' or",
        ),
        (
            {"rope_parameters": YARN_ROPE["rope_parameters"] | {"factor": 1.0}},
            "attention_factor of .* is 1.3",
        ),
        ({"rope_parameters": LLAMA3_ROPE["rope_parameters"] | {"high_freq_factor": 8.0}}, "high_freq_factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rot"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        # What a config.json that was edited by hand holds; transformers' config class lets it through.
        ({"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "rope_theta is None; RoPE needs a number"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "1e4"}}, "rope_theta is '1e4'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta is 0; .* above 0"),
        ({"num_key_value_heads": 3}, "num_attention_heads 8 does not divide by num_key_value_heads 3"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0; a model of Llama has a whole number above 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"head_dim": -8}, "head_dim is -8"),
    ],
    "olmo3": [
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 2 layers|config of OLMo-3"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types is .*chunked_attention"),
        ({"sliding_window": None}, "sliding_window is None with layers of sliding_attention"),
        ({"sliding_window": -1}, "sliding_window is -1 with layers of sliding_attention"),
        (_olmo3_rope(full={"rope_type": "yarn", "factor": "8"}), "factor is '8'; RoPE needs a number|config of OLMo-3"),
        (
            _olmo3_rope(full=_yarn(original_max_position_embeddings=0)),
            "original_max_position_embeddings is 0; RoPE needs",
        ),
        (_olmo3_rope(full=_yarn(attention_factor=[1.2])), "attention_factor is .1.2."),
        (_olmo3_rope(sliding={"rope_type": "linear", "factor": 2.0}), "rope_type is 'linear'"),
        (_olmo3_rope(sliding={"rope_type": "yarn", "factor": 2.0}), "rope_type of sliding_attention is 'yarn'"),
        (_olmo3_rope(sliding={"rope_theta": 1e4}), "rope_theta is 10000.0 in layers of sliding_attention and 5000.0"),
        (
            _olmo3_rope(full={"rope_type": "yarn", "factor": 2.0, "truncate": False}),
            "truncate of full_attention",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn' for no kind of layer"),
        ({"attention_bias": True}, "attention_bias is True"),
    ],
    "qwen2": [
        ({"use_sliding_window": True, "sliding_window": 16}, "sliding_window is 16"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "rope_type is 'dynamic'"),
    ],
    "qwen3": [
        ({"use_sliding_window": True, "sliding_window": 16}, "sliding_window is 16"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": None}, "rope_type is 'linear'"),
    ],
    "smollm3": [
        ({"use_sliding_window": True, "sliding_window": 16}, "sliding_window is 16"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"no_rope_layers": [1]}, "no_rope_layers has 1 entries for 2 layers"),
        ({"no_rope_layers": [1], "layer_types": None}, "config of SmolLM3"),
    ],
    "youtu": [
        ({"sliding_window": 16}, "sliding_window is 16"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_interleave": False}, "rope_interleave is False"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05"),
        ({"q_lora_rank": None}, "q_lora_rank is None"),
        ({"num_key_value_heads": 8}, "num_key_value_heads is 8"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, "rope_type is 'linear'"),
        (YARN_ROPE, "truncate of rope_parameters is False"),
    ],
    "qwen3_moe": [
        ({"attention_bias": True}, "attention_bias is True"),
        ({"use_sliding_window": True, "sliding_window": 16}, "sliding_window is 16"),
        ({"mlp_only_layers": [0, 1]}, "no layer has experts"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5 of 4 experts"),
        ({"num_experts_per_tok": 1}, "norm_topk_prob is True with num_experts_per_tok 1"),
    ],
    "olmoe": [
        ({"clip_qkv": 8.0}, "clip_qkv is 8.0"),
        ({"num_experts": 0}, "no layer has experts"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok is 0 of 4 experts"),
    ],
}
