"""Which architectures can be converted, and whether one can represent all that a config asks for."""

from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from megatron_remit.convert import llama, olmo2, olmo3, olmoe, qwen2, qwen3, qwen3_moe, smollm3, youtu
from megatron_remit.convert.hf_folder import check_model_folder
from megatron_remit.convert.hf_io import read_json
from megatron_remit.convert.rope import bad_number, refuse_scaling
from megatron_remit.convert.rules import Config, Family
from megatron_remit.errors import UserError

_MODULES = (llama, olmo2, olmo3, olmoe, qwen2, qwen3, qwen3_moe, smollm3, youtu)
FAMILIES = {module.FAMILY.architecture: module.FAMILY for module in _MODULES}

_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
_MOST_LAYERS = 10_000
_MORE_SIZES = ("vocab_size", "max_position_embeddings", "head_dim", "v_head_dim", "q_lora_rank", "kv_lora_rank")

# Config fields that no family represents, with the only value that all of them can read.
_NEEDED = {"partial_rotary_factor": 1.0, "transformers_weights": None}


def read_config(folder: Path) -> tuple[Family, dict[str, Any]]:
    """The family and the whole config of a Hugging Face folder.

    A field that config.json leaves out has the default of transformers' config class, as when transformers loads the
    model.

    Raises:
        UserError: config.json is missing or is not of a known architecture, or has a setting that the family cannot
            represent; the message names the field.
    """
    check_model_folder(folder)
    where = folder / "config.json"
    raw = read_json(where)
    family = _family(raw, where)
    layers = raw.get("num_hidden_layers")
    if isinstance(layers, int) and layers > _MOST_LAYERS:  # transformers would list the type of each
        raise UserError(f"{where}: num_hidden_layers is {layers}; expected at most {_MOST_LAYERS}")
    config = _completed(family, raw, where)
    _check(family, config, where)
    return family, config


def family_fields(family: Family, folder: Path) -> dict[str, Any]:
    """Fields that say what the model is, as far as the folder's config.json does not: they travel with the model."""
    raw = read_json(folder / "config.json")
    fields: dict[str, Any] = {}
    if family.architecture not in _architectures(raw):
        fields["architectures"] = [family.architecture]
    if _class_of_type(raw) != family.architecture:  # transformers could not load the folder again
        fields["model_type"] = getattr(transformers, family.architecture).config_class.model_type
    return fields


def _class_of_type(raw: Config) -> str:
    """The class that transformers' AutoModelForCausalLM takes for ``model_type``; empty for a type it does not know."""
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(raw.get("model_type")), "")


def _architectures(raw: Config) -> list[str]:
    found = raw.get("architectures") or []
    return [str(name) for name in found] if isinstance(found, list) else [str(found)]


def _family(raw: Config, where: Path) -> Family:
    """The family of the class that transformers' AutoModelForCausalLM takes, which goes by ``model_type``."""
    if raw.get("text_config") or raw.get("vision_config"):
        raise UserError(
            f"{where}: it has a text_config or vision_config, so the model is multimodal; save its language model alone"
        )
    if quantized := raw.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise UserError(
            f"{where}: quantization_config says that the weights are quantized ({method}); give the model before it "
            "was quantized, or remove the field if its weights are plain"
        )
    named = _architectures(raw)
    architecture = _class_of_type(raw)
    if architecture in FAMILIES and (not named or not _other_names(architecture).isdisjoint(named)):
        return FAMILIES[architecture]
    known = next((name for name in named if name in FAMILIES), None)
    if known is None:
        scores = any(name.endswith(("Classification", "RewardModel")) for name in named)
        raise UserError(
            f"{where}: architectures is {named} and model_type {raw.get('model_type')!r}"
            f"{', a model that scores texts and predicts no tokens' if scores else ''}; this program knows "
            f"{', '.join(sorted(FAMILIES))}"
        )
    if architecture not in ("", known):
        raise UserError(
            f"{where}: architectures is {named}, but transformers reads model_type {raw['model_type']!r} as "
            f"{architecture}; correct the one that is wrong"
        )
    return FAMILIES[known]


def _other_names(architecture: str) -> set[str]:
    """What training tools write for an architecture: the class that FSDP2 or torch.compile makes, or its base model."""
    return {f"FSDP{architecture}", "OptimizedModule", architecture.replace("ForCausalLM", "Model")}


def _completed(family: Family, raw: Config, where: Path) -> dict[str, Any]:
    model_class = getattr(transformers, family.architecture)
    try:
        return model_class.config_class.from_dict(dict(raw)).to_dict()
    except (StrictDataclassError, AttributeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{where}: transformers cannot read it as a config of {family.name} ({error})") from None


def _check(family: Family, config: Config, where: Path) -> None:
    for field, needed in {**_NEEDED, **family.needed}.items():
        found = config.get(field, needed)
        if found != needed:
            raise UserError(f"{where}: {field} is {found!r}; the {family.name} conversion needs {needed!r}")
    kinds = family.kinds_of_layers
    if len(kinds) == 1 and config.get("sliding_window") is not None and config.get("use_sliding_window", True):
        raise UserError(
            f"{where}: sliding_window is {config['sliding_window']}; the {family.name} conversion needs full attention"
        )
    if set(config.get("layer_types") or ()) - set(kinds):
        raise UserError(
            f"{where}: layer_types is {config['layer_types']}; the {family.name} conversion needs {' or '.join(kinds)}"
        )
    _check_sizes(family, config, where)
    rope = config["rope_parameters"]
    ropes = [rope] if len(kinds) == 1 else [rope[kind] for kind in kinds]
    for one in ropes:
        _check_rope(family, one, where)
    reasons = (refuse_scaling(one, config["max_position_embeddings"]) for one in ropes)
    reason = next(filter(None, reasons), None) or family.refuse(config)
    if reason:
        raise UserError(f"{where}: {reason}, which the {family.name} conversion cannot represent")


def _check_sizes(family: Family, config: Config, where: Path) -> None:
    """Refuse what transformers' config classes let through and no model can have."""
    for field in (*_SIZES, *_MORE_SIZES):
        size = config.get(field)
        # Only head_dim may be left to the others; 0 is read as that, as transformers does.
        if size is None and field not in _SIZES:
            continue
        if type(size) is not int or size < (field != "head_dim"):
            raise UserError(f"{where}: {field} is {size!r}; a model of {family.name} has a whole number above 0")
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % groups:
        raise UserError(f"{where}: num_attention_heads {heads} does not divide by num_key_value_heads {groups}")
    if not config.get("head_dim") and config["hidden_size"] % heads:
        raise UserError(f"{where}: hidden_size {config['hidden_size']} does not divide by num_attention_heads {heads}")


def _check_rope(family: Family, rope: Config, where: Path) -> None:
    if rope.get("rope_type") not in family.rope_types:
        raise UserError(
            f"{where}: rope_type is {rope.get('rope_type')!r}; the {family.name} conversion needs "
            f"{' or '.join(map(repr, family.rope_types))}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"{where}: partial_rotary_factor is {rope['partial_rotary_factor']}; the {family.name} conversion needs 1.0"
        )
    if bad := bad_number(rope):
        raise UserError(f"{where}: {bad} is {rope.get(bad)!r}; RoPE needs a number above 0 there")
    if not float(rope["rope_theta"]).is_integer():
        raise UserError(f"{where}: rope_theta is {rope['rope_theta']}; Megatron's --rotary-base takes whole numbers")
