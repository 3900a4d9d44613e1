"""OLMo-3: Hugging Face ``Olmo3ForCausalLM`` <-> the layers of megatron_remit.specs.olmo3.

OLMo-2 with sliding windows in most layers. Those have plain RoPE; the layers that see everything may have YaRN.
"""

from dataclasses import replace
from typing import Any

from megatron_remit.convert import llama_like, olmo2
from megatron_remit.convert.rules import Config

_SLIDING, _FULL = "sliding_attention", "full_attention"


def _arguments(config: Config) -> dict[str, Any]:
    stated = llama_like.arguments({**config, "rope_parameters": config["rope_parameters"][_FULL]})
    stated["spec"] = ["megatron_remit.specs.olmo3", "olmo3_layer_spec"]
    sliding = [int(kind == _SLIDING) for kind in config["layer_types"]]
    if any(sliding):
        # transformers counts the query itself, Megatron the keys to its left.
        stated |= {"window_size": (config["sliding_window"] - 1, 0), "window_attn_skip_freq": sliding}
    return stated


def _refuse(config: Config) -> str | None:
    kinds, ropes = config["layer_types"], config["rope_parameters"]
    if ropes.get("rope_type", "default") != "default":
        # Written by a transformers 5 that had one RoPE for all layers; 5.23 ignores it, and would lose YaRN.
        return f"rope_parameters has rope_type {ropes['rope_type']!r} for no kind of layer"
    if len(kinds) != config["num_hidden_layers"]:
        return f"layer_types has {len(kinds)} entries for {config['num_hidden_layers']} layers"
    if _SLIDING not in kinds:
        return None
    if (config["sliding_window"] or 0) < 1:
        return f"sliding_window is {config['sliding_window']} with layers of {_SLIDING}"
    if ropes[_SLIDING]["rope_type"] != "default":
        return f"rope_type of {_SLIDING} is {ropes[_SLIDING]['rope_type']!r}"
    thetas = {kind: ropes[kind]["rope_theta"] for kind in (_SLIDING, _FULL)}
    if thetas[_SLIDING] != thetas[_FULL]:
        return f"rope_theta is {thetas[_SLIDING]} in layers of {_SLIDING} and {thetas[_FULL]} in those of {_FULL}"
    if not ropes[_FULL].get("truncate", True):
        # transformers 5.23 reads this field where there is one RoPE for all layers, and here it does not.
        return f"truncate of {_FULL} is False"
    return None


FAMILY = replace(
    olmo2.FAMILY,
    name="OLMo-3",
    architecture="Olmo3ForCausalLM",
    arguments=_arguments,
    kinds_of_layers=(_SLIDING, _FULL),
    refuse=_refuse,
)
