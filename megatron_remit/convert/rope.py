"""RoPE with scaling: transformers' ``rope_parameters`` as Megatron arguments, and what Megatron cannot compute.

Source: ``transformers/modeling_rope_utils.py``, whose YaRN multiplies cosine and sine by an attention factor.
Megatron's ``YarnRotaryEmbedding`` computes that factor from ``mscale`` and ``mscale_all_dim``.
"""

import math
from typing import Any

from megatron_remit.convert.rules import Config

# Constants in Megatron's RotaryEmbedding._apply_scaling, where only the factor is an argument.
_LLAMA3_CONSTANTS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# Every number of rope_parameters; those of YaRN may be None, and are then what transformers computes.
_NUMBERS = ("rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow")
_MORE_NUMBERS = ("mscale", "mscale_all_dim", *_LLAMA3_CONSTANTS)


def bad_number(rope: Config) -> str | None:
    """The first field of ``rope`` that holds no finite number above 0 where RoPE computes with one; None if all do.

    transformers' config classes only warn of them. YaRN reads 0 in beta and mscale as a field that is not there.
    """
    for field in (*_NUMBERS, *_MORE_NUMBERS):
        value = rope.get(field)
        if value is None and field != "rope_theta":
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value is None or value < 0 or (value == 0 and not field.startswith(("beta", "mscale"))):
            return field
    return None


def scaling_arguments(rope: Config, max_positions: int) -> dict[str, Any]:
    """What the scaling in ``rope`` adds to the arguments of plain RoPE, in a model for ``max_positions`` tokens."""
    if rope["rope_type"] == "llama3":
        return {"use_rope_scaling": True, "rope_scaling_factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        return {"position_embedding_type": "yarn", **yarn_arguments(rope, max_positions)}
    return {}


def yarn_arguments(rope: Config, max_positions: int, mscale_all_dim: float = 0.0) -> dict[str, Any]:
    """YaRN's numbers as Megatron arguments.

    ``mscale`` is chosen so that Megatron's factor of cosine and sine, which is scale(mscale) / scale(mscale_all_dim),
    is transformers'; its own ``mscale`` of 1 is the default factor, to the last bit.
    """
    factor = _factor(rope, max_positions)
    numerator = _attention_factor(rope, factor) * _scale(factor, mscale_all_dim)
    if rope.get("attention_factor") is None and rope.get("mscale") and rope.get("mscale_all_dim") == mscale_all_dim:
        mscale = float(rope["mscale"])
    elif factor <= 1 or numerator == _scale(factor):
        mscale = 1.0
    else:
        mscale = (numerator - 1) / (0.1 * math.log(factor))
    return {
        "rotary_scaling_factor": factor,
        "mscale": mscale,
        "mscale_all_dim": mscale_all_dim,
        "yarn_original_max_position_embeddings": int(rope["original_max_position_embeddings"]),
        "yarn_beta_fast": float(rope.get("beta_fast") or 32),
        "yarn_beta_slow": float(rope.get("beta_slow") or 1),
        "yarn_correction_range_round_to_int": bool(rope.get("truncate", True)),
    }


def refuse_scaling(rope: Config, max_positions: int) -> str | None:
    """What Megatron cannot compute of ``rope``, in words; None if it computes all of it."""
    if rope["rope_type"] == "llama3":
        for field, needed in _LLAMA3_CONSTANTS.items():
            if rope.get(field) != needed:
                return f"{field} of rope_parameters is {rope.get(field)!r}, and Megatron's RoPE scaling has {needed!r}"
    if rope["rope_type"] == "yarn":
        factor = _factor(rope, max_positions)
        if factor <= 1 and _attention_factor(rope, factor) != 1:
            return f"attention_factor of rope_parameters is {rope['attention_factor']} though its factor is {factor}"
    return None


def _factor(rope: Config, max_positions: int) -> float:
    return float(rope["factor"] or max_positions / rope["original_max_position_embeddings"])


def _attention_factor(rope: Config, factor: float) -> float:
    """What transformers multiplies cosine and sine by."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return _scale(factor, rope["mscale"]) / _scale(factor, rope["mscale_all_dim"])
    return _scale(factor)


def _scale(factor: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
