"""Multi-latent attention (DeepSeek-V2/V3, Youtu-LLM) on Megatron's local linear layers, right at every TP size.

Shapes: S sequence, B micro-batch, s the part of S on this rank under sequence parallelism (S / TP), L compressed width
(``q_lora_rank``, or ``kv_lora_rank`` with the rotary part R = ``qk_pos_emb_head_dim``).
"""

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.multi_latent_attention import MLASelfAttention, MLASelfAttentionSubmodules

from megatron_remit.specs.norm import mark_sequence_parallel
from megatron_remit.specs.rms import rms_norm


class NormedColumnParallelLinear(ColumnParallelLinear):
    """RMSNorm and column-parallel projection in one module, its norm weight named ``layer_norm_weight``.

    The counterpart of Transformer Engine's ``TELayerNormColumnParallelLinear``, with its parameter names. A separate
    norm module would be named q_layernorm, and ``finalize_model_grads`` sums that module's gradient over TP when
    ``config.qk_layernorm`` is set. That is right for a norm of this rank's heads. Here the gradient is whole on every
    rank unless the sequence is split, and then the sequence-parallel mark asks for the sum.
    """

    def __init__(self, input_size: int, output_size: int, *, config: Any, **kwargs: Any) -> None:
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.eps = config.layernorm_epsilon
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(input_size))
        mark_sequence_parallel(self.layer_norm_weight, config)

    def forward(self, input_: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Normalise [.., L], cast before the weight as the families with this attention do, and project."""
        normed = rms_norm(input_, self.layer_norm_weight, self.eps, cast_first=True)
        return super().forward(normed, *args, **kwargs)


class LatentSelfAttention(MLASelfAttention):
    """Megatron's ``MLASelfAttention`` whose gradients over TP are right without Transformer Engine.

    All heads share the rotary part of the key, so its gradient is the sum over every rank's heads. Megatron gathers it
    from column-parallel projections with an operation whose backward pass only cuts out this rank's columns.
    """

    def _resolve_qk_norm_config(self, submodules: MLASelfAttentionSubmodules) -> dict[str, type]:
        """The modules as the spec names them: Megatron's resolver knows fused norms of Transformer Engine only."""
        return {
            "linear_q_proj": submodules.linear_q_proj,
            "linear_q_up_proj": submodules.linear_q_up_proj,
            "linear_kv_up_proj": submodules.linear_kv_up_proj,
            "q_layernorm": IdentityOp,
            "kv_layernorm": IdentityOp,
        }

    def _qkv_down_projection(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compressed query [S, B, L] and compressed key/value with the rotary key [S, B, L + R], of whole width.

        Under sequence parallelism both have s positions, and the caller gathers the rotary key with a sum of gradients.
        """
        query = hidden_states
        if self.config.q_lora_rank is not None:
            query = self._whole(self.linear_q_down_proj(hidden_states)[0])
        key_value = self._whole(self.linear_kv_down_proj(hidden_states)[0])
        if not self.config.sequence_parallel:
            compressed, rotary = key_value.split([self.config.kv_lora_rank, self.config.qk_pos_emb_head_dim], dim=-1)
            rotary = copy_to_tensor_model_parallel_region(rotary, self.tp_group)
            key_value = torch.cat([compressed, rotary], dim=-1)
        return query, key_value

    def _whole(self, columns: torch.Tensor) -> torch.Tensor:
        gathered = gather_from_tensor_model_parallel_region(columns, self.tp_group)
        if self.config.sequence_parallel:
            return scatter_to_sequence_parallel_region(gathered, self.tp_group)
        return gathered
