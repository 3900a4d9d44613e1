"""A document mask comes back whole from two numbers per position."""

import pytest
import torch

from megatron_remit.data.batch import attention_mask_of, mask_of, with_visible_spans


def masks(sequences, width, seed):
    """[B, 1, W, W], True = hidden: causal attention inside documents that begin at random places."""
    draw = torch.Generator().manual_seed(seed)
    document_BW = (torch.rand(sequences, width, generator=draw) < 0.2).cumsum(-1)
    same_BWW = document_BW.unsqueeze(-1) == document_BW.unsqueeze(-2)
    return ~(same_BWW & torch.ones(width, width, dtype=torch.bool).tril()).unsqueeze(1)


@pytest.mark.parametrize("positions", [slice(None), [0, 1, 2, 21, 22, 23]], ids=["whole", "a rank of CP 4"])
def test_a_mask_is_kept_as_spans_and_made_again_to_the_bit(positions):
    mask = masks(3, 24, seed=1)[:, :, positions]
    kept = with_visible_spans({"attention_mask": mask})
    assert kept["attention_mask"] is None and kept["visible"].shape == (3, mask.size(2), 2)
    assert torch.equal(mask_of(kept["visible"], 24), mask)


def test_without_a_mask_attention_stays_causal():
    kept = with_visible_spans({"attention_mask": None})
    assert "visible" not in kept and attention_mask_of(kept) is None
