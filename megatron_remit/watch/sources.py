"""The sources of a blend: the corpora of the training set, in the order of the samples' ``dataset_id``."""

import argparse
from collections.abc import Sequence
from pathlib import PurePath

from megatron.training.utils import get_blend_and_blend_per_split


def blended_sources(args: argparse.Namespace) -> list[str]:
    """The names of the training set's corpora; none if it has only one, whose samples carry no ``dataset_id``."""
    if args.mock_data:
        return []
    blend, per_split = get_blend_and_blend_per_split(args)
    chosen = blend if per_split is None else per_split[0]
    prefixes = [] if chosen is None else chosen[0]
    return source_names(prefixes) if len(prefixes) > 1 else []


def source_names(prefixes: Sequence[str]) -> list[str]:
    """The shortest ends of the corpora's prefixes that tell them apart, as ``web`` and ``math`` for ``/data/web`` and
    ``/data/math``. A corpus that the blend has more than once is numbered, ``web#2``."""
    parts = [PurePath(prefix).parts for prefix in prefixes]
    different = set(parts)
    names: list[str] = []
    for own in parts:
        length = 1
        while length < len(own) and any(other != own and other[-length:] == own[-length:] for other in different):
            length += 1
        name = "/".join(own[-length:]).lstrip("/")
        earlier = sum(other == own for other in parts[: len(names)])
        names.append(f"{name}#{earlier + 1}" if earlier else name)
    return names
