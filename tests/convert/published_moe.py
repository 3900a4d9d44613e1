"""Published config.json files of models with experts, their parameters, and changes that cannot be represented.

A model's file is the first one that its line names, with the changes next to it. The quotes were found in public
repositories and notes, and are complete unless a comment says otherwise. "Derived" ones were not found quoted in full:
the fields that matter here follow from the model cards.
"""

# Qwen/Qwen3-30B-A3B, quoted in full.
QWEN3_30B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LONG = {"max_position_embeddings": 262144, "rope_theta": 10000000}
# Qwen/Qwen3-Coder-30B-A3B-Instruct, quoted as transformers 4.57.1 shows it.
CODER = LONG | {
    "intermediate_size": 5472,
    "max_window_layers": 28,
    "qkv_bias": False,
    "router_aux_loss_coef": 0.0,
    "shared_expert_intermediate_size": 0,
    "use_qk_norm": True,
}
# Qwen/Qwen3-235B-A22B, quoted in full.
QWEN3_235B = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_window_layers": 94,
    "moe_intermediate_size": 1536,
    "num_attention_heads": 64,
    "num_hidden_layers": 94,
}
# Qwen/Qwen3-Coder-480B-A35B-Instruct, quoted in full.
CODER_480B = CODER | {
    "hidden_size": 6144,
    "intermediate_size": 8192,
    "max_window_layers": 62,
    "moe_intermediate_size": 2560,
    "num_attention_heads": 96,
    "num_experts": 160,
    "num_hidden_layers": 62,
    "num_key_value_heads": 8,
}
# The layout of a file of transformers 5 (Qwen3-30B-A3B-Thinking-2507, quoted as transformers 5.7.0 shows it): another
# name for the number of experts, and RoPE in one field.
_OLDER_NAMES = {"num_experts", "rope_scaling", "rope_theta", "torch_dtype"}
THINKING = {name: value for name, value in QWEN3_30B.items() if name not in _OLDER_NAMES} | {
    "dtype": "bfloat16",
    "max_position_embeddings": 262144,
    "num_local_experts": 128,
    "pad_token_id": None,
    "rope_parameters": {"rope_theta": 10000000, "rope_type": "default"},
    "transformers_version": "5.7.0",
}
# A checkpoint of allenai's OLMoE-1B-7B ("_name_or_path": "step23842-hf"), quoted in full.
OLMOE = {
    "architectures": ["OlmoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "clip_qkv": None,
    "eos_token_id": 50279,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 1024,
    "max_position_embeddings": 4096,
    "model_type": "olmoe",
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "output_router_logits": False,
    "pad_token_id": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "router_aux_loss_coef": 0.01,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.48.1",
    "use_cache": True,
    "vocab_size": 50304,
}
BF16 = {"torch_dtype": "bfloat16"}

# name -> (config, parameters). Model cards give the numbers rounded: 30.5B, 235B, 480B, 6.9B.
PUBLISHED = {
    "Qwen3-30B-A3B": (QWEN3_30B, 30_532_122_624),
    # Derived.
    "Qwen3-30B-A3B-Base": (QWEN3_30B | {"eos_token_id": 151643, "max_position_embeddings": 32768}, 30_532_122_624),
    # Derived.
    "Qwen3-30B-A3B-Instruct-2507": (QWEN3_30B | LONG, 30_532_122_624),
    "Qwen3-30B-A3B-Thinking-2507": (THINKING, 30_532_122_624),
    "Qwen3-Coder-30B-A3B-Instruct": (QWEN3_30B | CODER, 30_532_122_624),
    "Qwen3-235B-A22B": (QWEN3_30B | QWEN3_235B, 235_093_634_560),
    # Quoted, but for rope_scaling and sliding_window, which the quote has as 0.
    "Qwen3-235B-A22B-2507": (
        QWEN3_30B | QWEN3_235B | {"max_position_embeddings": 262144, "rope_theta": 5000000},
        235_093_634_560,
    ),
    "Qwen3-Coder-480B-A35B-Instruct": (QWEN3_30B | CODER_480B, 480_154_875_392),
    # Derived: the quoted file with the dtype of the published weights.
    "OLMoE-1B-7B-0924": (OLMOE | BF16, 6_919_161_856),
    "OLMoE-1B-7B-0924-SFT": (OLMOE | BF16, 6_919_161_856),
    "OLMoE-1B-7B-0924-Instruct": (OLMOE | BF16, 6_919_161_856),
    "OLMoE-1B-7B-0125": (OLMOE, 6_919_161_856),
    # Derived: a test of another project has its keys, with these values for clip_qkv, RoPE, norms and the router.
    "OLMoE-1B-7B-0125-Instruct": (OLMOE | BF16, 6_919_161_856),
}
