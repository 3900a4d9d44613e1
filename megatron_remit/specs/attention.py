"""Causal core attention on torch's own scaled_dot_product_attention: no Transformer Engine, no [S, S] matrix in memory.

Shapes: S sequence, B micro-batch, N query heads on this rank, G key/value heads on this rank, D head width
(E that of the values where it is another).
"""

from typing import Any

import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_remit.errors import UserError

# What torch's kernel cannot do: (config field, the value it needs, what to do about it).
_NEEDED = (
    ("attention_dropout", 0, "pass --attention-dropout 0"),
    ("context_parallel_size", 1, "drop --context-parallel-size or use --transformer-impl transformer_engine"),
    ("apply_query_key_layer_scaling", False, "drop --apply-query-key-layer-scaling"),
    ("window_size", None, "drop --window-size or use --transformer-impl transformer_engine"),
    ("softmax_type", "vanilla", "drop --softmax-type or use --transformer-impl transformer_engine"),
)


class SDPACoreAttention(MegatronModule):
    """Drop-in for Megatron's ``DotProductAttention``: [S, B, N, D] x [S, B, G, D] x [S, B, G, E] -> [S, B, N*E].

    The value's head width E is D but in multi-latent attention, which passes the widths as ``k_channels`` and
    ``v_channels``; the tensors say the same, so they are not needed here.
    ``attention_mask`` [B or 1, 1, S, S] (True = hidden; it includes causality) is needed only for document masks
    (--reset-attention-mask); without it the mask type decides, and torch's causal kernel runs.
    Raises :class:`UserError` for attention dropout, context parallelism and the other features it does not have.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        k_channels: int | None = None,
        v_channels: int | None = None,
    ) -> None:
        super().__init__(config=config)
        for field, needed, remedy in _NEEDED:
            found = getattr(config, field)
            if field == "attention_dropout" and attention_dropout is not None:
                found = attention_dropout
            if found != needed:
                raise UserError(f"the local attention needs {field} = {needed}, found {found}: {remedy}")
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        if attention_bias is not None or packed_seq_params is not None:
            raise UserError("the local attention has no attention bias and no packed sequences: use Transformer Engine")
        mask_type = attn_mask_type or self.attn_mask_type
        if mask_type not in (AttnMaskType.causal, AttnMaskType.no_mask):
            raise UserError(f"the local attention is causal or unmasked, not {mask_type.name}: use Transformer Engine")
        # A CPU without bf16 instructions runs torch's bf16 attention about five times slower than its fp32 one.
        compute_dtype = query.dtype if query.is_cuda else torch.promote_types(query.dtype, torch.float32)
        context_BNSD = torch.nn.functional.scaled_dot_product_attention(
            *(x.to(compute_dtype).permute(1, 2, 0, 3) for x in (query, key, value)),
            attn_mask=None if attention_mask is None else ~attention_mask,
            is_causal=attention_mask is None and mask_type == AttnMaskType.causal,
            scale=self.softmax_scale,
            enable_gqa=query.size(2) != key.size(2),
        )
        return context_BNSD.permute(2, 0, 1, 3).reshape(*query.shape[:2], -1).to(query.dtype)
