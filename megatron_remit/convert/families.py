"""Which architectures can be converted, and whether one can represent all that a config asks for."""

from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError

from megatron_remit.convert import llama, olmo2, qwen3, smollm3, youtu
from megatron_remit.convert.hf_io import read_json
from megatron_remit.convert.rules import Config, Family
from megatron_remit.errors import UserError

FAMILIES = {module.FAMILY.architecture: module.FAMILY for module in (llama, olmo2, qwen3, smollm3, youtu)}

# Config fields that no family represents, with the only value that all of them can read.
_NEEDED = {"partial_rotary_factor": 1.0, "quantization_config": None}


def read_config(folder: Path) -> tuple[Family, dict[str, Any]]:
    """The family and the whole config of a Hugging Face folder.

    A field that config.json leaves out has the default of transformers' config class, as when transformers loads the
    model.

    Raises:
        UserError: config.json is missing or is not of a known architecture, or has a setting that the family cannot
            represent; the message names the field.
    """
    where = folder / "config.json"
    raw = read_json(where)
    architectures = raw.get("architectures") or []
    known = [FAMILIES[name] for name in architectures if name in FAMILIES]
    if not known:
        raise UserError(f"{where}: architectures is {architectures}; this program knows {', '.join(sorted(FAMILIES))}")
    family = known[0]
    config = _completed(family, raw, where)
    _check(family, config, where)
    return family, config


def _completed(family: Family, raw: Config, where: Path) -> dict[str, Any]:
    model_class = getattr(transformers, family.architecture)
    try:
        return model_class.config_class.from_dict(dict(raw)).to_dict()
    except (StrictDataclassError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{where}: transformers cannot read it as a config of {family.name} ({error})") from None


def _check(family: Family, config: Config, where: Path) -> None:
    for field, needed in {**_NEEDED, **family.needed}.items():
        found = config.get(field, needed)
        if found != needed:
            raise UserError(f"{where}: {field} is {found!r}; the {family.name} conversion needs {needed!r}")
    if config.get("sliding_window") is not None and config.get("use_sliding_window", True):
        raise UserError(
            f"{where}: sliding_window is {config['sliding_window']}; the {family.name} conversion needs full attention"
        )
    if set(config.get("layer_types") or ()) - {"full_attention"}:
        raise UserError(
            f"{where}: layer_types is {config['layer_types']}; the {family.name} conversion needs full_attention"
        )
    _check_rope(family, config["rope_parameters"], where)
    reason = family.refuse(config)
    if reason:
        raise UserError(f"{where}: {reason}, which the {family.name} conversion cannot represent")


def _check_rope(family: Family, rope: Config, where: Path) -> None:
    if rope["rope_type"] not in family.rope_types:
        raise UserError(
            f"{where}: rope_type is {rope['rope_type']!r}; the {family.name} conversion needs "
            f"{' or '.join(map(repr, family.rope_types))}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"{where}: partial_rotary_factor is {rope['partial_rotary_factor']}; the {family.name} conversion needs 1.0"
        )
    if not float(rope["rope_theta"]).is_integer():
        raise UserError(f"{where}: rope_theta is {rope['rope_theta']}; Megatron's --rotary-base takes whole numbers")
