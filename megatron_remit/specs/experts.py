"""Layers whose MLP is a mixture of experts: Megatron's ``MoELayer``, which layers have one, and how it chooses.

Without Transformer Engine the experts run one after the other (Megatron's ``SequentialMLP``); with it, and with
``--moe-grouped-gemm``, they are one grouped GEMM. A checkpoint has the same names with both.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from megatron.core.models.backends import BackendSpecProvider
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec_for_backend
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from megatron.training.models.gpt import GPTModelConfig, default_layer_spec


class _StableTopK:
    """The largest k in descending order, the first of equals first. In place of Megatron's ``RouterReplay``.

    Megatron's own choice sorts them only where gradients are recorded. Their softmax then adds in another order, and a
    reference would differ in the last bits from the policy that it is a copy of.
    """

    layer_number: int | None = None  # set by Megatron

    @staticmethod
    def get_replay_topk(
        scores: torch.Tensor, topk: int, num_groups: int | None, group_topk: int | None, default: Callable[..., Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and indices, [tokens, topk], of ``scores`` [tokens, experts]."""
        if group_topk:
            return default(scores, topk, num_groups=num_groups, group_topk=group_topk)
        values, indices = scores.sort(dim=1, descending=True, stable=True)
        return values[:, :topk], indices[:, :topk]


class StableTopKRouter(TopKRouter):
    """Megatron's router, which chooses alike with and without gradients. ``--moe-router-fusion`` has its own order."""

    router_replay: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.config.moe_enable_routing_replay:
            self.router_replay = _StableTopK()


def mixture(transformer: TransformerConfig, backend: BackendSpecProvider) -> partial:
    """The ``mlp`` of a layer with experts, made of the backend's linear layers."""
    return _stable(get_moe_module_spec_for_backend(backend, transformer.num_moe_experts, transformer.moe_grouped_gemm))


def expert_pattern(transformer: TransformerConfig) -> list[bool]:
    """Which layers of the model have experts (``--moe-layer-freq``)."""
    frequency = transformer.moe_layer_freq
    if transformer.num_moe_experts is None:
        return [False] * transformer.num_layers
    if isinstance(frequency, int):
        return [layer % frequency == 0 for layer in range(transformer.num_layers)]
    return [bool(has_experts) for has_experts in frequency]


def own_layers(transformer: TransformerConfig, layers: Sequence[ModuleSpec], vp_stage: int | None) -> list[ModuleSpec]:
    """Those of the model's ``layers`` that this pipeline stage (and model chunk) holds."""
    first = get_transformer_layer_offset(transformer, vp_stage)
    return list(layers[first : first + get_num_layers_to_build(transformer, vp_stage)])


def megatron_layer_spec(config: GPTModelConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """Megatron's own layers for a model with experts, with :class:`StableTopKRouter`."""
    block = default_layer_spec(config, vp_stage)
    return replace(block, layer_specs=[_with_stable_router(layer) for layer in block.layer_specs])


def _with_stable_router(layer: ModuleSpec) -> ModuleSpec:
    mlp = layer.submodules.mlp
    if not isinstance(mlp, partial) or mlp.func is not MoELayer:
        return layer
    return replace(layer, submodules=replace(layer.submodules, mlp=_stable(mlp)))


def _stable(mlp: partial) -> partial:
    parts = replace(mlp.keywords["submodules"], router=StableTopKRouter)
    return partial(mlp.func, *mlp.args, **(mlp.keywords | {"submodules": parts}))
