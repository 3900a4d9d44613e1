"""Qwen3, dense: Hugging Face ``Qwen3ForCausalLM``. Llama with a norm over each single query head and key head."""

from megatron_remit.convert import llama_like
from megatron_remit.convert.rules import Family

FAMILY = Family(
    name="Qwen3",
    architecture="Qwen3ForCausalLM",
    rules=(*llama_like.RULES, *llama_like.HEAD_NORMS),
    extra_state=llama_like.EXTRA_STATE | llama_like.HEAD_NORMS_EXTRA_STATE,
    arguments=lambda config: llama_like.arguments(config) | {"qk_layernorm": True},
    dims=llama_like.dims,
    needed=llama_like.NEEDED,
    rope_types=llama_like.ROPE_TYPES,
)
