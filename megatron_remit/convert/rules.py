"""What a name table is made of: one rule joins Hugging Face tensors into a Megatron tensor, and splits it again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Parts = Sequence[torch.Tensor]
Dims = Mapping[str, int]  # a letter per axis; also "groups" = number of key/value heads, "padded" = padded vocabulary


@dataclass(frozen=True)
class Join:
    """The two directions of one rearrangement; each undoes the other bit for bit."""

    to_megatron: Callable[[Parts, Dims], torch.Tensor]
    to_hf: Callable[[torch.Tensor, Dims], Parts]


@dataclass(frozen=True)
class Rule:
    """``hf`` maps each Hugging Face name ("{i}" = layer) to its axes, one letter of ``Dims`` an axis.

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
    """One architecture. ``check`` raises UserError for a config it cannot represent; ``arguments`` and ``dims`` read
    a checked config: Megatron's argument names and values, and the sizes that the rules name."""

    architecture: str
    rules: tuple[Rule, ...]
    tied_away: frozenset[str]  # Megatron tensors that do not exist when embedding and output layer are tied
    modules_with_extra_state: tuple[str, ...]
    check: Callable[[dict[str, Any], str], None]
    arguments: Callable[[dict[str, Any]], dict[str, Any]]
    dims: Callable[[dict[str, Any]], dict[str, int]]

    def rules_for(self, config: Mapping[str, Any]) -> tuple[Rule, ...]:
        """The rules that hold for this config."""
        tied = config.get("tie_word_embeddings", False)
        return tuple(rule for rule in self.rules if not (tied and rule.megatron in self.tied_away))


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
