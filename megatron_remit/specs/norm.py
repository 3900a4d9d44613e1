"""Norms in plain torch that know sequence parallelism: whole on each rank, or spread over tensor-parallel ranks.

Shapes: S sequence, B micro-batch, H hidden, W the whole projection width, w its part on this rank (W / TP).
"""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from megatron.core.utils import get_tensor_model_parallel_group_if_none

from megatron_remit.specs.rms import rms_norm, rms_norm_pair


def mark_sequence_parallel(parameter: Any, config: TransformerConfig) -> None:
    """Tell Megatron's ``finalize_model_grads`` whether to sum the parameter's gradient over the TP ranks.

    Under sequence parallelism each rank sees a part of the positions, so its gradient of a whole parameter is partial.
    """
    parameter.sequence_parallel = config.sequence_parallel


class RMSNorm(torch.nn.Module):
    """``x / rms(x) * weight`` over the last dimension: [.., H] -> [.., H] of x's dtype.

    All of it is computed in fp32, the weight included, and cast once (HF ``Olmo2RMSNorm``; other families cast before
    the weight: :class:`CastFirstRMSNorm`).
    """

    casts_first = False

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size))
        mark_sequence_parallel(self.weight, config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps, self.casts_first)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Megatron's checkpoint protocol: one copy for all ranks of the TP group.

        Written out because ``MLP.sharded_state_dict`` asks its children without naming the TP group, and Megatron's
        default then treats every TP rank as the owner.
        """
        tp_group = get_tensor_model_parallel_group_if_none(None)
        return _sharded(self, {}, tp_group, prefix, sharded_offsets, metadata)


class CastFirstRMSNorm(RMSNorm):
    """RMSNorm that is cast to x's dtype before the weight is applied (HF ``LlamaRMSNorm`` and those of Qwen3, SmolLM3
    and Youtu). In fp32 the two are equal; in bf16 the last bit differs."""

    casts_first = True


class LayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm with the marks that sequence parallelism needs; Megatron's local one refuses it."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps)
        mark_sequence_parallel(self.weight, config)
        mark_sequence_parallel(self.bias, config)


class ShardedNormWeight(torch.nn.Module):
    """The w entries on this rank of a norm weight [W], saved and loaded as one tensor of W entries at any TP.

    Gradient reduction: each rank owns its entries, so their gradients must not be summed over TP. Megatron's
    ``finalize_model_grads`` does that to any parameter named q_layernorm or k_layernorm when ``config.qk_layernorm``
    is set; OLMo-2 keeps that switch off and names these modules q_norm and k_norm, so neither condition holds.
    The tensor-parallel attribute makes the gradient norm count every rank's entries.
    """

    def __init__(self, local_width: int, tp_group: torch.distributed.ProcessGroup) -> None:
        super().__init__()
        self.tp_group = tp_group
        self.weight = torch.nn.Parameter(torch.ones(local_width))
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=0, stride=1)

    def forward(self) -> torch.Tensor:
        """The weight [w]. Callers call the module instead of reading the attribute: ``--overlap-param-gather`` waits
        for the updated weight when the module that owns it is called."""
        return self.weight

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Megatron's checkpoint protocol: the weight is split along its only axis over the TP group."""
        return _sharded(self, {"weight": 0}, self.tp_group, prefix, sharded_offsets, metadata)


def _sharded(
    module: torch.nn.Module,
    tp_axes: dict[str, int],
    tp_group: torch.distributed.ProcessGroup,
    prefix: str,
    sharded_offsets: tuple,
    metadata: dict | None,
) -> dict[str, Any]:
    dp_cp_group = (metadata or {}).get("dp_cp_group")
    if dp_cp_group is None:
        dp_cp_group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    state = module.state_dict(prefix="", keep_vars=True)
    return make_sharded_tensors_for_checkpoint(
        state, prefix, tp_axes, sharded_offsets, tp_group=tp_group, dp_cp_group=dp_cp_group
    )


def rms_norm_pair_over_tp(
    query_SBw: torch.Tensor,
    key_SBw: torch.Tensor,
    query_norm: ShardedNormWeight,
    key_norm: ShardedNormWeight,
    eps: float,
    cast_first: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm of query and key over their whole projection widths, of which this rank holds a part.

    The scale of every rank's entries depends on every rank's entries (HF ``Olmo2Attention.q_norm``), so the ranks
    exchange their sums of squares: :class:`~megatron_remit.specs.rms.PairOverRanks`.
    ``cast_first``: cast before the weight is applied, as :class:`CastFirstRMSNorm` does.
    Returns tensors of the shapes and dtype given.
    """
    weights = query_norm(), key_norm()
    return rms_norm_pair(query_SBw, key_SBw, weights, eps, cast_first, query_norm.tp_group)
