"""Qwen3 with experts: Hugging Face ``Qwen3MoeForCausalLM``. Qwen3 whose layers, all or some, have a mixture of experts.

Published models have experts in every layer. ``decoder_sparse_step`` and ``mlp_only_layers`` leave layers with a dense
MLP of ``intermediate_size``.
"""

from typing import Any

from megatron_remit.convert import llama_like, mixture, qwen3
from megatron_remit.convert.rules import Config, Family, Mixture


def _experts(config: Config) -> int:
    return config["num_local_experts"]  # transformers' name for config.json's num_experts


def _pattern(config: Config) -> list[bool]:
    """Which layers have experts (``Qwen3MoeDecoderLayer``)."""
    dense, step = config["mlp_only_layers"], config["decoder_sparse_step"]
    return [
        layer not in dense and _experts(config) > 0 and (layer + 1) % step == 0
        for layer in range(config["num_hidden_layers"])
    ]


def _dims(config: Config) -> dict[str, int]:
    return llama_like.dims(config) | mixture.dims(_experts(config), config["moe_intermediate_size"])


def _arguments(config: Config) -> dict[str, Any]:
    experts = mixture.arguments(config, _experts(config), config["moe_intermediate_size"], _pattern(config))
    return qwen3.FAMILY.arguments(config) | experts


def _refuse(config: Config) -> str | None:
    if config["decoder_sparse_step"] < 1:
        return f"decoder_sparse_step is {config['decoder_sparse_step']}"
    return mixture.refuse(config, _experts(config), _pattern(config))


FAMILY = Family(
    name="Qwen3-MoE",
    architecture="Qwen3MoeForCausalLM",
    rules=qwen3.FAMILY.rules,
    extra_state=qwen3.FAMILY.extra_state,
    arguments=_arguments,
    dims=_dims,
    needed=llama_like.NEEDED,
    refuse=_refuse,
    rope_types=llama_like.ROPE_TYPES,
    mixture=Mixture(_pattern, mixture.RULES, mixture.EXTRA_STATE),
)
