"""The tensors of a model, from its family's rules: how many parameters it has, and what each layer holds and keeps.

Nothing here is particular to a family: a rule says which tensors there are, and Megatron's names say what they do.
"""

import argparse
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from megatron.core.transformer.utils import is_layer_window_attention

from megatron_remit.convert.families import read_config
from megatron_remit.convert.rules import OUTPUT_LAYER, in_layer_order

_EMBEDDING = "embedding."
_EXPERTS = ".experts."
# Projections back to the hidden width: their input is kept for the backward pass, and their output joins the residual.
_TO_HIDDEN = re.compile(r"linear_(proj|fc2)\b")
# Norms of queries and keys, over each head alone or over all of them.
_HEAD_NORM = re.compile(r"\b([qk])_(?:layer)?norm\b")


@dataclass(frozen=True)
class Part:
    """One layer, or the sum of several. Parameters, and values per token that the backward pass needs."""

    split: int = 0
    """Parameters in matrices that tensor parallelism divides."""
    whole: int = 0
    """Parameters that every tensor-parallel rank has: norms."""
    experts: int = 0
    """Parameters of routed experts, which expert parallelism divides."""
    active: float = 0.0
    """Parameters in matrices that one token meets: of the experts only those that it is sent to."""
    kept_split: float = 0.0
    """Values per token that tensor parallelism divides."""
    kept_whole: float = 0.0
    """Values per token of the hidden width, which sequence parallelism divides."""
    rotated: int = 0
    """Layers whose queries and keys RoPE rotates."""
    windowed: int = 0
    """Layers whose queries see a window of the keys."""

    def __add__(self, other: "Part") -> "Part":
        return Part(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Model:
    """A model's size, without its weights."""

    family: str
    architecture: str
    layers: tuple[Part, ...]
    embedding: int
    """Parameters of the embedding, without the rows that pad the vocabulary."""
    output: int
    """Parameters of the output layer; 0 if it shares the embedding's."""
    final: int
    """Parameters of the final norm."""

    @property
    def parameters(self) -> int:
        """All parameters, as transformers counts them."""
        layers = sum(self.layers, Part())
        return layers.split + layers.whole + layers.experts + self.embedding + self.output + self.final

    @property
    def active(self) -> float:
        """Parameters that a token is multiplied with: not the embedding, but the output layer, shared or not."""
        return sum(self.layers, Part()).active + (self.output or self.embedding)


def read_model(hf: Path, args: argparse.Namespace) -> Model:
    """The model whose config is in ``hf``; ``args`` are its shape as Megatron's arguments. Reads no weights.

    Raises:
        UserError: as :func:`~megatron_remit.convert.families.read_config`.
    """
    family, config = read_config(hf)
    dims = family.dims(config)
    layers = [_attention(args, layer) for layer in range(args.num_layers)]
    embedding = output = final = 0
    for rule, layer in in_layer_order(family.rules_for(config), args.num_layers):
        for shape in rule.hf_shapes(dims, layer or 0).values():
            size = math.prod(shape)
            if layer is not None:
                layers[layer] += _part(rule.megatron, shape, args)
            elif rule.megatron.startswith(_EMBEDDING):
                embedding += size
            elif rule.megatron == OUTPUT_LAYER:
                output += size
            else:
                final += size
    return Model(family.name, family.architecture, tuple(layers), embedding, output, final)


def _part(name: str, shape: tuple[int, ...], args: argparse.Namespace) -> Part:
    """What one Hugging Face tensor of a layer adds; ``name`` is Megatron's for it."""
    size, width = math.prod(shape), shape[-1]
    if len(shape) == 1:
        if "norm" not in name:
            return Part(whole=size)
        head_norm = _HEAD_NORM.search(name)
        if head_norm is not None:
            heads = args.num_attention_heads if head_norm[1] == "q" else args.num_query_groups
            values = heads * args.kv_channels
            return Part(whole=size, kept_split=values)
        if width == args.hidden_size:
            return Part(whole=size, kept_whole=width)
        return Part(whole=size, kept_split=width)
    # What a token meets of this matrix, and of those beside it.
    share = args.moe_router_topk / args.num_experts if _EXPERTS in name else 1
    rows = math.prod(shape[:-1])
    to_hidden = _TO_HIDDEN.search(name) is not None
    kept = {"kept_whole": share * rows, "kept_split": share * width} if to_hidden else {"kept_split": share * rows}
    if _EXPERTS in name:
        return Part(experts=size, active=share * size, **kept)
    return Part(split=size, active=size, **kept)


def _attention(args: argparse.Namespace, layer: int) -> Part:
    """What attention keeps of its queries and keys, beside what projections and norms keep."""
    heads, without = args.num_attention_heads, args.no_rope_freq
    windowed = int(is_layer_window_attention(args.window_size, args.window_attn_skip_freq, layer + 1))
    if args.multi_latent_attention:
        # Queries and keys with their rotary parts: that of the key is one for all heads, and each head gets a copy.
        return Part(kept_split=heads * args.qk_pos_emb_head_dim, rotated=1)
    if isinstance(without, int):
        without = [(number + 1) % without == 0 for number in range(args.num_layers)]
    if args.position_embedding_type not in ("rope", "yarn") or (without and without[layer]):
        return Part(kept_split=heads * args.kv_channels, windowed=windowed)
    kept = (heads + args.num_query_groups) * args.kv_channels
    return Part(kept_split=kept, rotated=1, windowed=windowed)


def stages(model: Model, counts: list[int]) -> Iterator[Part]:
    """The sums over the ``counts`` of successive layers, one per pipeline stage."""
    start = 0
    for count in counts:
        yield sum(model.layers[start : start + count], Part())
        start += count
