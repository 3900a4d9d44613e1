"""Qwen2 and Qwen2.5, dense: Hugging Face ``Qwen2ForCausalLM``. Llama with biases on query, key and value."""

from megatron_remit.convert import llama_like
from megatron_remit.convert.llama_like import ATTENTION, LAYER
from megatron_remit.convert.rules import QKV, Family, Rule

_QKV_BIAS = Rule(
    f"{ATTENTION}.linear_qkv.bias",
    {
        f"{LAYER}.self_attn.q_proj.bias": "Q",
        f"{LAYER}.self_attn.k_proj.bias": "K",
        f"{LAYER}.self_attn.v_proj.bias": "K",
    },
    QKV,
)

FAMILY = Family(
    name="Qwen2",
    architecture="Qwen2ForCausalLM",
    rules=(*llama_like.RULES, _QKV_BIAS),
    extra_state=llama_like.EXTRA_STATE,
    arguments=lambda config: llama_like.arguments(config) | {"add_qkv_bias": True},
    dims=llama_like.dims,
    # The biases are not a choice: the class has no attention_bias and no mlp_bias.
    needed={field: llama_like.NEEDED[field] for field in ("hidden_act", "attention_dropout")},
    rope_types=llama_like.ROPE_TYPES,
)
