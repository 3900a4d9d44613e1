"""Llama 1 to 3: Hugging Face ``LlamaForCausalLM``, with the RoPE scaling of Llama 3.1 and later."""

from typing import Any

from megatron_remit.convert import llama_like
from megatron_remit.convert.rules import Config, Family

# Constants in Megatron's RotaryEmbedding._apply_scaling, where only the factor is an argument.
_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def _arguments(config: Config) -> dict[str, Any]:
    rope = config["rope_parameters"]
    scaled = rope["rope_type"] == "llama3"
    scaling = {"use_rope_scaling": True, "rope_scaling_factor": float(rope["factor"])} if scaled else {}
    return llama_like.arguments(config) | scaling


def _refuse(config: Config) -> str | None:
    rope = config["rope_parameters"]
    if rope["rope_type"] == "llama3":
        for field, needed in _SCALING.items():
            if rope.get(field) != needed:
                return f"{field} of rope_parameters is {rope.get(field)!r}, and Megatron's RoPE scaling has {needed!r}"
    return None


FAMILY = Family(
    name="Llama",
    architecture="LlamaForCausalLM",
    rules=llama_like.RULES,
    extra_state=llama_like.EXTRA_STATE,
    arguments=_arguments,
    dims=llama_like.dims,
    needed=llama_like.NEEDED,
    rope_types=("default", "llama3"),
    refuse=_refuse,
)
