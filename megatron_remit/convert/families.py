"""Which architectures can be converted."""

from typing import Any

from megatron_remit.convert import olmo2
from megatron_remit.convert.rules import Family
from megatron_remit.errors import UserError

FAMILIES = {family.architecture: family for family in (olmo2.FAMILY,)}


def family_of(config: dict[str, Any], where: str) -> Family:
    """The family of a Hugging Face config whose every setting it can represent; :class:`UserError` otherwise."""
    architectures = config.get("architectures") or []
    known = [FAMILIES[name] for name in architectures if name in FAMILIES]
    if not known:
        raise UserError(
            f"{where}: architectures is {architectures}; this program knows {', '.join(sorted(FAMILIES))}"
        )
    known[0].check(config, where)
    return known[0]
