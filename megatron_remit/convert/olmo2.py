"""OLMo-2: Hugging Face ``Olmo2ForCausalLM`` <-> the layers of megatron_remit.specs.olmo2.

The norms come after attention and MLP. One more norm spans all query heads, and another one all key heads.
"""

from megatron_remit.convert import llama_like
from megatron_remit.convert.llama_like import ATTENTION, LAYER, MLP
from megatron_remit.convert.rules import SAME, Family, Rule

FAMILY = Family(
    name="OLMo-2",
    architecture="Olmo2ForCausalLM",
    rules=(
        llama_like.EMBEDDING,
        llama_like.QKV_PROJECTION,
        Rule(f"{ATTENTION}.q_norm.weight", {f"{LAYER}.self_attn.q_norm.weight": "Q"}, SAME),
        Rule(f"{ATTENTION}.k_norm.weight", {f"{LAYER}.self_attn.k_norm.weight": "K"}, SAME),
        llama_like.OUTPUT_PROJECTION,
        Rule(f"{ATTENTION}.post_norm.weight", {f"{LAYER}.post_attention_layernorm.weight": "H"}, SAME),
        *llama_like.MLP_PROJECTIONS,
        Rule(f"{MLP}.post_norm.weight", {f"{LAYER}.post_feedforward_layernorm.weight": "H"}, SAME),
        *llama_like.HEAD,
    ),
    # The norms are ours with every implementation, so they have no extra state.
    extra_state={
        f"{ATTENTION}.linear_qkv": True,
        **llama_like.ATTENTION_EXTRA_STATE,
        **llama_like.MLP_EXTRA_STATE,
    },
    arguments=lambda config: (
        llama_like.arguments(config) | {"spec": ["megatron_remit.specs.olmo2", "olmo2_layer_spec"]}
    ),
    dims=llama_like.dims,
    needed=llama_like.NEEDED,
    rope_types=llama_like.ROPE_TYPES,
)
