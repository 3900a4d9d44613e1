"""OLMoE: Hugging Face ``OlmoeForCausalLM`` <-> the layers of megatron_remit.specs.olmoe.

Every layer has experts. One norm spans all query heads and another one all key heads, as in OLMo-2, but the other norms
come before attention and experts, as in Llama.
"""

from typing import Any

from megatron_remit.convert import llama_like, mixture
from megatron_remit.convert.llama_like import ATTENTION, LAYER
from megatron_remit.convert.rules import SAME, Config, Family, Mixture, Rule


def _pattern(config: Config) -> list[bool]:
    return [config["num_experts"] > 0] * config["num_hidden_layers"]


def _dims(config: Config) -> dict[str, int]:
    return llama_like.dims(config) | mixture.dims(config["num_experts"], config["intermediate_size"])


def _arguments(config: Config) -> dict[str, Any]:
    experts = mixture.arguments(config, config["num_experts"], config["intermediate_size"], _pattern(config))
    return llama_like.arguments(config) | experts | {"spec": ["megatron_remit.specs.olmoe", "olmoe_layer_spec"]}


FAMILY = Family(
    name="OLMoE",
    architecture="OlmoeForCausalLM",
    rules=(
        llama_like.EMBEDDING,
        llama_like.QKV_PROJECTION,
        llama_like.INPUT_NORM,
        Rule(f"{ATTENTION}.q_norm.weight", {f"{LAYER}.self_attn.q_norm.weight": "Q"}, SAME),
        Rule(f"{ATTENTION}.k_norm.weight", {f"{LAYER}.self_attn.k_norm.weight": "K"}, SAME),
        llama_like.OUTPUT_PROJECTION,
        *llama_like.HEAD,
    ),
    # The norms of query and key are ours with every implementation, so they have no extra state.
    extra_state={
        f"{ATTENTION}.linear_qkv": True,
        **llama_like.ATTENTION_EXTRA_STATE,
        "decoder.final_layernorm": False,
    },
    arguments=_arguments,
    dims=_dims,
    needed=llama_like.NEEDED | {"clip_qkv": None},
    refuse=lambda config: mixture.refuse(config, config["num_experts"], _pattern(config)),
    rope_types=llama_like.ROPE_TYPES,
    mixture=Mixture(_pattern, mixture.RULES, mixture.EXTRA_STATE),
)
