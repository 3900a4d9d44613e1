"""Llama 1 to 3: Hugging Face ``LlamaForCausalLM``, with the RoPE scaling of Llama 3.1 and later."""

from megatron_remit.convert import llama_like
from megatron_remit.convert.rules import Family

FAMILY = Family(
    name="Llama",
    architecture="LlamaForCausalLM",
    rules=llama_like.RULES,
    extra_state=llama_like.EXTRA_STATE,
    arguments=llama_like.arguments,
    dims=llama_like.dims,
    needed=llama_like.NEEDED,
    rope_types=(*llama_like.ROPE_TYPES, "llama3"),
)
