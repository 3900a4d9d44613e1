"""Values of a whole sequence, or of a whole global batch, from the parts that ranks hold. Pure torch.

A choice between tokens (which to keep, which to exchange) must see all of them, in one order, to be the same in every
parallel layout. The order is that of the data: sample by sample, position by position.

Shape suffixes: B microbatch, S sequence positions on this rank, W positions of the whole sequence (S times the
context-parallel size), M microbatches of a step, D data-parallel ranks.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup


def whole_sequence(part_BS: Tensor, cp_group: ProcessGroup | None) -> Tensor:
    """[..., S] on each context-parallel rank to [..., W] on all of them, in the order of the sequence.

    Megatron cuts a sequence into twice as many chunks as there are ranks and gives rank r the chunks r and -1 - r
    (``get_batch_on_this_cp_rank``), so that causal attention costs each rank the same.
    """
    if cp_group is None or cp_group.size() == 1:
        return part_BS
    parts = [torch.empty_like(part_BS) for _ in range(cp_group.size())]
    torch.distributed.all_gather(parts, part_BS.contiguous(), group=cp_group)
    halves = [part.chunk(2, dim=-1) for part in parts]
    return torch.cat([first for first, _ in halves] + [second for _, second in reversed(halves)], dim=-1)


def own_part(whole_BW: Tensor, cp_group: ProcessGroup | None) -> Tensor:
    """What this rank holds of ``whole_BW``: the inverse of :func:`whole_sequence`."""
    if cp_group is None or cp_group.size() == 1:
        return whole_BW
    chunks = whole_BW.chunk(2 * cp_group.size(), dim=-1)
    rank = cp_group.rank()
    return torch.cat([chunks[rank], chunks[-1 - rank]], dim=-1)


def whole_batch(own_MBW: Tensor, dp_group: ProcessGroup | None) -> Tensor:
    """[M, B, W] of each data-parallel rank to the global batch [M, D, B, W] on all of them, in the order of the data.

    Megatron's sampler deals out the batch in turns: microbatch 0 of each rank, microbatch 1 of each rank, and so on.
    """
    if dp_group is None or dp_group.size() == 1:
        return own_MBW.unsqueeze(1)
    parts = [torch.empty_like(own_MBW) for _ in range(dp_group.size())]
    torch.distributed.all_gather(parts, own_MBW.contiguous(), group=dp_group)
    return torch.stack(parts, dim=1)
