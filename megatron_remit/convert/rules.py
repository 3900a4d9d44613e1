"""What a name table is made of: one rule joins Hugging Face tensors into a Megatron tensor, and splits it again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

Config = Mapping[str, Any]
Parts = Sequence[torch.Tensor]
Dims = Mapping[str, int]
"""A letter per axis; also "groups" = number of key/value heads, "padded" = padded vocabulary, "experts" = experts of a
layer."""

OUTPUT_LAYER = "output_layer.weight"
LAYERS = "decoder.layers."
DENSE_MLP = f"{LAYERS}mlp."


@dataclass(frozen=True)
class Join:
    """The two directions of one rearrangement; each undoes the other bit for bit."""

    to_megatron: Callable[[Parts, Dims], torch.Tensor]
    to_hf: Callable[[torch.Tensor, Dims], Parts]


@dataclass(frozen=True)
class Rule:
    """``hf`` maps each Hugging Face name ("{i}" = layer, "{e}" = expert) to its axes, one letter of ``Dims`` per axis.

    ``layered``: each layer has it. Megatron stores one tensor for all layers, with the layer as its first axis, unless
    the layers differ in kind: then ``megatron`` has the layer's number ("{i}") in it.
    ``experts``: each expert of a layer has it, and Megatron's tensor has the expert as its next axis.
    ``only``: the layers that have it; None for all.
    """

    megatron: str
    hf: Mapping[str, str]
    join: Join
    layered: bool = True
    experts: bool = False
    only: frozenset[int] | None = None

    def expert_range(self, dims: Dims) -> Sequence[int | None]:
        """The experts of a layer that each have this tensor; one None for what is no expert's."""
        return range(dims["experts"]) if self.experts else (None,)

    def hf_names(self, layer: int | None, expert: int | None = None) -> list[str]:
        """The Hugging Face names that join into the tensor of one layer and one expert."""
        return [name.format(i=layer, e=expert) for name in self.hf]

    def hf_shapes(self, dims: Dims, layer: int) -> dict[str, tuple[int, ...]]:
        """Hugging Face name -> shape, for one layer with all its experts."""
        shapes = [tuple(dims[axis] for axis in axes) for axes in self.hf.values()]
        return {
            name: shape
            for expert in self.expert_range(dims)
            for name, shape in zip(self.hf_names(layer, expert), shapes, strict=True)
        }

    def megatron_shape(self, dims: Dims) -> tuple[int, ...]:
        """The shape of the joined tensor (of one layer and expert), found by joining tensors that hold no data."""
        parts = [torch.empty([dims[axis] for axis in axes], device="meta") for axes in self.hf.values()]
        return tuple(self.join.to_megatron(parts, dims).shape)

    def place(self, layer: int | None, expert: int | None, layers: int, dims: Dims) -> "Place":
        """Where Megatron keeps the tensor of one layer and one expert."""
        return _place(self.megatron, layer, layers, expert, dims)


@dataclass(frozen=True)
class Place:
    """One entry of a stored tensor: ``index`` along the axes that Megatron puts in front, which are ``counts`` long."""

    name: str
    index: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()


def _place(name: str, layer: int | None, layers: int, expert: int | None, dims: Dims) -> Place:
    axes = [(layer, layers)] if layer is not None and "{i}" not in name else []
    if expert is not None:
        axes.append((expert, dims["experts"]))
    return Place(name.format(i=layer), tuple(at for at, _ in axes), tuple(count for _, count in axes))


@dataclass(frozen=True)
class Mixture:
    """The layers of a family whose MLP is a mixture of experts. The others have the family's rules of a dense MLP."""

    layers: Callable[[Config], Sequence[bool]]
    """Which layers these are."""
    rules: tuple[Rule, ...]
    """What they have in place of a dense MLP."""
    extra_state: Mapping[str, bool]
    """Module -> whether each expert has one."""


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
    mixture: Mixture | None = None

    def rules_for(self, config: Config) -> tuple[Rule, ...]:
        """The rules that hold for this config: tied embeddings leave no output layer of its own, and with experts each
        kind of layer has its own."""
        tied = config["tie_word_embeddings"]
        rules = [rule for rule in self.rules if not (tied and rule.megatron == OUTPUT_LAYER)]
        if self.mixture is None:
            return tuple(rules)
        dense, mixed = self._kinds(config)
        placed = [replace(rule, only=dense) if rule.megatron.startswith(DENSE_MLP) else rule for rule in rules]
        placed += [replace(rule, only=mixed) for rule in self.mixture.rules]
        if dense and mixed:
            placed = [replace(rule, megatron=numbered(rule.megatron)) if rule.layered else rule for rule in placed]
        return tuple(rule for rule in placed if rule.only is None or rule.only)

    def extra_states(self, config: Config, layers: int, dims: Dims) -> list[Place]:
        """Where Megatron looks for an ``_extra_state``, by module."""
        places, dense, mixed = [], frozenset(range(layers)), frozenset[int]()
        if self.mixture is not None:
            dense, mixed = self._kinds(config)
        for module, layered in self.extra_state.items():
            of_layers = sorted(dense) if module.startswith(DENSE_MLP) else range(layers)
            name = numbered(module) if dense and mixed else module
            places += [_place(name, layer, layers, None, dims) for layer in (of_layers if layered else [None])]
        if self.mixture is not None:
            for module, by_expert in self.mixture.extra_state.items():
                name = numbered(module) if dense else module
                experts: Sequence[int | None] = range(dims["experts"]) if by_expert else (None,)
                places += [_place(name, layer, layers, e, dims) for layer in sorted(mixed) for e in experts]
        return places

    def _kinds(self, config: Config) -> tuple[frozenset[int], frozenset[int]]:
        """The layers with a dense MLP and those with experts."""
        assert self.mixture is not None
        pattern = list(self.mixture.layers(config))
        mixed = frozenset(layer for layer, has_experts in enumerate(pattern) if has_experts)
        return frozenset(range(len(pattern))) - mixed, mixed


def numbered(name: str) -> str:
    """The name in a model whose layers differ in kind, which Megatron stores layer by layer ("{i}" = layer)."""
    return name.replace(LAYERS, f"{LAYERS}{{i}}.")


def in_layer_order(rules: Sequence[Rule], layers: int) -> list[tuple[Rule, int | None]]:
    """Every rule with each layer that it holds for, in the order in which a model runs: so do files list tensors."""
    first = next(number for number, rule in enumerate(rules) if rule.layered)
    before: list[tuple[Rule, int | None]] = [(rule, None) for rule in rules[:first]]
    inside: list[tuple[Rule, int | None]] = [
        (rule, layer)
        for layer in range(layers)
        for rule in rules
        if rule.layered and (rule.only is None or layer in rule.only)
    ]
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
GATE_UP = Join(lambda parts, dims: torch.cat(list(parts)), lambda tensor, dims: tensor.chunk(2))
QKV = Join(_interleave_groups, _separate_groups)
