"""Causal core attention on torch's own scaled_dot_product_attention: no Transformer Engine, no [S, S] matrix in memory.

Under context parallelism (CP) every rank holds two of the sequence's 2 * CP chunks in Megatron's zigzag order: rank r
has chunks r and 2 * CP - 1 - r, so that causal attention costs every rank the same. Keys and values are gathered,
queries stay.

With packed documents (``--dataloader-inter-document-masking``) each document is a sequence of its own.

Shapes: S sequence, s its part on this rank (S / CP), C one chunk (s / 2), B micro-batch, N query heads on this rank, G
key/value heads on this rank, D head width, E that of the values, t tokens of all packed documents.
"""

from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.functional import scaled_dot_product_attention

from megatron_remit.errors import UserError
from megatron_remit.specs.window import attend_in_windows, window_of_layer

# What torch's kernel cannot do: (config field, the value that it needs, what to do about it).
_NEEDED = (
    ("attention_dropout", 0, "pass --attention-dropout 0"),
    ("apply_query_key_layer_scaling", False, "drop --apply-query-key-layer-scaling"),
    ("softmax_type", "vanilla", "drop --softmax-type or use --transformer-impl transformer_engine"),
)


class SDPACoreAttention(MegatronModule):
    """Drop-in for Megatron's ``DotProductAttention``: [s, B, N, D] x [s, B, G, D] x [s, B, G, E] -> [s, B, N*E].

    The value's head width E equals D except in multi-latent attention, which passes the widths as ``k_channels`` and
    ``v_channels``. The tensors have these widths already, so the two arguments are not used.

    Only document masks (--reset-attention-mask) need ``attention_mask`` [B or 1, 1, s, S]. True hides a key from a
    query; the mask includes causality; its rows are this rank's queries and its columns are all keys in their order.
    Without a mask the mask type decides, and torch's causal kernel runs. ``config.window_size`` narrows what the layers
    of ``config.window_attn_skip_freq`` see (:mod:`megatron_remit.specs.window`).

    With ``packed_seq_params`` in the format "thd" there is no B: [t, N, D] x [t, G, D] x [t, G, E] -> [t, N*E], and
    each of the documents whose borders it has attends to itself.

    Raises:
        UserError: attention dropout, or another feature that this attention lacks.
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
        self.window = window_of_layer(config, layer_number)
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale
        self.cp_group = None
        if config.context_parallel_size > 1:
            self.cp_group = parallel_state.get_context_parallel_group() if pg_collection is None else pg_collection.cp

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        if attention_bias is not None:
            raise UserError("the local attention has no attention bias: use Transformer Engine")
        mask_type = attn_mask_type or self.attn_mask_type
        if mask_type not in (AttnMaskType.causal, AttnMaskType.no_mask):
            raise UserError(f"the local attention is causal or unmasked, not {mask_type.name}: use Transformer Engine")
        if self.window is not None and mask_type != AttnMaskType.causal:
            raise UserError("the local attention has windows in causal layers only: drop --window-size")
        if packed_seq_params is not None:
            return self._documents(query, key, value, packed_seq_params, mask_type)
        if self.cp_group is not None:
            widths = [key.size(-1), value.size(-1)]
            key, value = gather_zigzag(torch.cat([key, value], dim=-1), self.cp_group).split(widths, dim=-1)
        # A CPU without bf16 instructions runs torch's bf16 attention about five times slower than its fp32 one.
        compute_dtype = query.dtype if query.is_cuda else torch.promote_types(query.dtype, torch.float32)
        query_BNsD, key_BGSD, value_BGSE = (x.to(compute_dtype).permute(1, 2, 0, 3) for x in (query, key, value))
        causal = mask_type == AttnMaskType.causal
        context_BNsE = self._attend(query_BNsD, key_BGSD, value_BGSE, attention_mask, causal)
        return context_BNsE.permute(2, 0, 1, 3).reshape(*query.shape[:2], -1).to(query.dtype)

    def _documents(
        self,
        query_tND: torch.Tensor,
        key_tGD: torch.Tensor,
        value_tGE: torch.Tensor,
        documents: PackedSeqParams,
        mask_type: AttnMaskType,
    ) -> torch.Tensor:
        """[t, N*E]: each document as a microbatch of one sequence."""
        if self.cp_group is not None:
            raise UserError("the local attention has no packed documents under --context-parallel-size")
        lengths = documents.cu_seqlens_q.diff().tolist()
        parts = zip(*(x.unsqueeze(1).split(lengths) for x in (query_tND, key_tGD, value_tGE)), strict=True)
        return torch.cat([self(*part, None, mask_type) for part in parts]).squeeze(1)

    def _attend(
        self,
        query_BNsD: torch.Tensor,
        key_BGSD: torch.Tensor,
        value_BGSE: torch.Tensor,
        attention_mask: torch.Tensor | None,
        causal: bool,
    ) -> torch.Tensor:
        grouped = query_BNsD.size(1) != key_BGSD.size(1)
        attend = partial(scaled_dot_product_attention, scale=self.softmax_scale, enable_gqa=grouped)
        if self.window is not None and self.window < key_BGSD.size(2):
            starts = [0]
            if self.cp_group is not None:
                starts = [index * query_BNsD.size(2) // 2 for index in zigzag_chunks(self.cp_group)]
            return attend_in_windows(attend, query_BNsD, key_BGSD, value_BGSE, self.window, starts, attention_mask)
        if attention_mask is not None:
            return attend(query_BNsD, key_BGSD, value_BGSE, attn_mask=~attention_mask)
        if self.cp_group is None or not causal:
            return attend(query_BNsD, key_BGSD, value_BGSE, is_causal=causal)
        # Only here: it imports half of torch's compiler, for a start without context parallelism to wait for.
        from torch.nn.attention.bias import causal_lower_right

        # Each chunk of queries sees the keys up to its own end, the last C of them causally.
        contexts = []
        for query_BNCD, index in zip(query_BNsD.chunk(2, dim=2), zigzag_chunks(self.cp_group), strict=True):
            length = query_BNCD.size(2)
            seen = (index + 1) * length
            mask = causal_lower_right(length, seen)
            contexts.append(attend(query_BNCD, key_BGSD[:, :, :seen], value_BGSE[:, :, :seen], attn_mask=mask))
        return torch.cat(contexts, dim=2)


def zigzag_chunks(cp_group: torch.distributed.ProcessGroup) -> tuple[int, int]:
    """Which two chunks of the sequence this rank holds (Megatron's ``get_batch_on_this_cp_rank``)."""
    return cp_group.rank(), 2 * cp_group.size() - 1 - cp_group.rank()


def gather_zigzag(part: torch.Tensor, cp_group: torch.distributed.ProcessGroup) -> torch.Tensor:
    """The whole sequence [S, ..] in its order from all ranks' parts [s, ..]; gradients are summed over the ranks."""
    gathered = gather_from_sequence_parallel_region(part, tensor_parallel_output_grad=True, group=cp_group)
    by_rank = gathered.view(cp_group.size(), 2, part.size(0) // 2, *part.shape[1:])
    return torch.cat([by_rank[:, 0], by_rank[:, 1].flip(0)]).flatten(0, 1)
