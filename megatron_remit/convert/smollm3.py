"""SmolLM3: Hugging Face ``SmolLM3ForCausalLM``. Llama with tied embeddings and layers without RoPE."""

from typing import Any

from megatron_remit.convert import llama_like
from megatron_remit.convert.rules import Config, Family


def _arguments(config: Config) -> dict[str, Any]:
    # A 1 in no_rope_layers means that the layer has RoPE; a 1 in Megatron's no_rope_freq means that it has none.
    without_rope = [0 if has_rope else 1 for has_rope in config["no_rope_layers"][: config["num_hidden_layers"]]]
    return llama_like.arguments(config) | {"no_rope_freq": without_rope if any(without_rope) else None}


def _refuse(config: Config) -> str | None:
    if len(config["no_rope_layers"]) < config["num_hidden_layers"]:
        return f"no_rope_layers has {len(config['no_rope_layers'])} entries for {config['num_hidden_layers']} layers"
    return None


FAMILY = Family(
    name="SmolLM3",
    architecture="SmolLM3ForCausalLM",
    rules=llama_like.RULES,
    extra_state=llama_like.EXTRA_STATE,
    arguments=_arguments,
    dims=llama_like.dims,
    needed=llama_like.NEEDED,
    rope_types=llama_like.ROPE_TYPES,
    refuse=_refuse,
)
