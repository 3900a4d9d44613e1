"""A microbatch's document mask as two numbers per position, from which the mask is made when a forward pass needs it.

A step's microbatches are all read before the policy trains on the first, and a mask has one entry per pair of
positions: at 16,384 tokens in rows of 4096 that is 64 MiB a microbatch, while the two numbers take 128 KiB.

Shape suffixes: B sequences of the microbatch, S positions on this rank, W positions of the whole sequence.
"""

import torch
from torch import Tensor


def spans_of(mask_B1SW: Tensor) -> Tensor:
    """The first and the last position that each position sees, [B, S, 2] int32, of a mask in which True hides.

    What a position sees must be all positions from the one to the other, as in causal attention inside documents.
    """
    visible_BSW = ~mask_B1SW.squeeze(1)
    # argmax of bool is not there on CUDA; of its bytes it gives the first of the largest.
    first_BS = visible_BSW.byte().argmax(-1)
    return torch.stack([first_BS, first_BS + visible_BSW.sum(-1) - 1], dim=-1).to(torch.int32)


def mask_of(spans_BS2: Tensor, width: int) -> Tensor:
    """The mask [B, 1, S, W] that :func:`spans_of` was given, with W = ``width``."""
    first_BS1, last_BS1 = spans_BS2.split(1, dim=-1)
    position_W = torch.arange(width, dtype=torch.int32, device=spans_BS2.device)
    return ((position_W < first_BS1) | (position_W > last_BS1)).unsqueeze(1)
