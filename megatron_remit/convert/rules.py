"""What a name table is made of: one rule joins Hugging Face tensors into a Megatron tensor, and splits it again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Config = Mapping[str, Any]
Parts = Sequence[torch.Tensor]
Dims = Mapping[str, int]  # a letter per axis; also "groups" = number of key/value heads, "padded" = padded vocabulary

OUTPUT_LAYER = "output_layer.weight"


@dataclass(frozen=True)
class Join:
    """The two directions of one rearrangement; each undoes the other bit for bit."""

    to_megatron: Callable[[Parts, Dims], torch.Tensor]
    to_hf: Callable[[torch.Tensor, Dims], Parts]


@dataclass(frozen=True)
class Rule:
    """``hf`` maps each Hugging Face name ("{i}" = layer) to its axes, one letter of ``Dims`` per axis.

    ``layered``: Megatron stores one tensor for all layers, with the layer as its first axis.
    """

    megatron: str
    hf: Mapping[str, str]
    join: Join
    layered: bool = True

    def hf_shapes(self, dims: Dims, layer: int) -> dict[str, tuple[int, ...]]:
        """Hugging Face name -> shape, for one layer."""
        return {name.format(i=layer): tuple(dims[axis] for axis in axes) for name, axes in self.hf.items()}

    def megatron_shape(self, dims: Dims) -> tuple[int, ...]:
        """The shape of the joined tensor (of one layer), found by joining tensors that hold no data."""
        parts = [torch.empty(shape, device="meta") for shape in self.hf_shapes(dims, 0).values()]
        return tuple(self.join.to_megatron(parts, dims).shape)


@dataclass(frozen=True)
class Family:
    """One architecture, read from a config that :func:`megatron_remit.convert.families.read_config` has completed.

    ``arguments`` and ``dims`` read a config that was found to be supported: Megatron's argument names and values, and
    the sizes that the rules name. ``extra_state`` maps a module to whether each layer has one.
    """

    name: str
    architecture: str
    rules: tuple[Rule, ...]
    extra_state: Mapping[str, bool]
    arguments: Callable[[Config], dict[str, Any]]
    dims: Callable[[Config], dict[str, int]]
    needed: Mapping[str, Any]  # config field -> the only value that the family can represent
    rope_types: tuple[str, ...] = ("default",)
    # The kinds in layer_types; with more than one, rope_parameters has a RoPE for each.
    kinds_of_layers: tuple[str, ...] = ("full_attention",)
    refuse: Callable[[Config], str | None] = lambda config: None  # what else it cannot represent, in words

    def rules_for(self, config: Config) -> tuple[Rule, ...]:
        """The rules that hold for this config: tied embeddings leave no output layer of its own."""
        tied = config["tie_word_embeddings"]
        return tuple(rule for rule in self.rules if not (tied and rule.megatron == OUTPUT_LAYER))


def in_layer_order(rules: Sequence[Rule], layers: int) -> list[tuple[Rule, int | None]]:
    """Every rule with each layer that it holds for, in the order in which a model runs: so do files list tensors."""
    first = next(number for number, rule in enumerate(rules) if rule.layered)
    before: list[tuple[Rule, int | None]] = [(rule, None) for rule in rules[:first]]
    inside: list[tuple[Rule, int | None]] = [(rule, layer) for layer in range(layers) for rule in rules if rule.layered]
    return before + inside + [(rule, None) for rule in rules[first:] if not rule.layered]


def _pad_vocabulary(parts: Parts, dims: Dims) -> torch.Tensor:
    missing = dims["padded"] - parts[0].size(0)
    return torch.cat([parts[0], parts[0].new_zeros(missing, *parts[0].shape[1:])]) if missing else parts[0]


def _interleave_groups(parts: Parts, dims: Dims) -> torch.Tensor:
    """[Q, ..], [K, ..], [K, ..] -> [Q + 2K, ..]: for each key/value head its query heads, its key, its value."""
    grouped = [part.reshape(dims["groups"], -1, *part.shape[1:]) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def _separate_groups(tensor: torch.Tensor, dims: Dims) -> Parts:
    grouped = tensor.reshape(dims["groups"], -1, *tensor.shape[1:])
    sizes = [dims[axis] // dims["groups"] for axis in "QKK"]
    return [part.flatten(0, 1) for part in grouped.split(sizes, dim=1)]


SAME = Join(lambda parts, dims: parts[0], lambda tensor, dims: [tensor])
PADDED_VOCABULARY = Join(_pad_vocabulary, lambda tensor, dims: [tensor[: dims["V"]]])
GATE_UP = Join(lambda parts, dims: torch.cat(list(parts)), lambda tensor, dims: tensor.split(dims["F"]))
QKV = Join(_interleave_groups, _separate_groups)
