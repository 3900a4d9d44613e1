"""Causal attention in sliding windows: each query sees the last W keys, itself included, and none before.

The queries are cut into blocks, and a block sees only the keys that one of its queries sees. So time and memory grow
with S * W and not with S * S.

Shapes: S sequence, s its part on this rank, B micro-batch, N query heads on this rank, G key/value heads on this rank,
D head width, E that of the values, n queries of one block, m keys that they see (at most n + W - 1).
"""

from collections.abc import Callable, Sequence

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention

from megatron_remit.errors import UserError

# Larger blocks waste the corners of the band, smaller ones the time to start a kernel.
BLOCK = 512


def window_of_layer(config: TransformerConfig, layer_number: int) -> int | None:
    """How many keys a query of the layer (counted from 1) sees, itself included; None if it sees all before it.

    Megatron's ``window_size`` (left, right) does not count the query itself; transformers' ``sliding_window`` does.

    Raises:
        UserError: the window reaches beyond the query.
    """
    if not is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number):
        return None
    left, right = config.window_size
    if right != 0:
        raise UserError(f"--window-size {left},{right}: the local attention is causal; give 0 as the second number")
    return None if left < 0 else left + 1


def attend_in_windows(
    attend: Callable[..., torch.Tensor],
    query_BNsD: torch.Tensor,
    key_BGSD: torch.Tensor,
    value_BGSE: torch.Tensor,
    window: int,
    starts: Sequence[int] = (0,),
    hidden: torch.Tensor | None = None,
) -> torch.Tensor:
    """The context [B, N, s, E] of the queries on this rank, which are equal chunks that start at ``starts``.

    ``attend`` is torch's ``scaled_dot_product_attention`` or a partial of it. ``hidden`` [B or 1, 1, s, S] hides keys
    in addition (True), such as those of other documents.
    """
    contexts, row = [], 0
    for chunk_BNCD, start in zip(query_BNsD.chunk(len(starts), dim=2), starts, strict=True):
        for block_BNnD in chunk_BNCD.split(min(window, BLOCK), dim=2):
            length = block_BNnD.size(2)
            keys = slice(max(0, start - window + 1), start + length)
            visible_nm = _visible(start, length, keys, window, query_BNsD.device)
            if hidden is not None:
                visible_nm = visible_nm & ~hidden[:, :, row : row + length, keys]
            contexts.append(attend(block_BNnD, key_BGSD[:, :, keys], value_BGSE[:, :, keys], attn_mask=visible_nm))
            start, row = start + length, row + length
    return torch.cat(contexts, dim=2)


def _visible(start: int, length: int, keys: slice, window: int, device: torch.device) -> torch.Tensor:
    """[n, m]: whether each of the queries start, start + 1, .. sees each of the keys."""
    query_n1 = torch.arange(start, start + length, device=device)[:, None]
    key_m = torch.arange(keys.start, keys.stop, device=device)
    return (key_m <= query_n1) & (key_m > query_n1 - window)
