"""PriFT's weights: the reference's probabilities over their mean in the global batch."""

import argparse
import math

import pytest
import torch

from megatron_remit import cpu
from megatron_remit.objectives.math.confidence import confidence_weights
from megatron_remit.objectives.ntp import NextToken
from megatron_remit.objectives.prift import Prift
from tests.ranks import run_ranks

cpu.install()

ARGS = argparse.Namespace(remit_vocab_size=515, cross_entropy_impl="auto")


def test_hand_computed_case():
    # Probabilities 1/2, 1/4, 1/4 and 1, whose mean is 1/2; the masked 1/8 does not count.
    nll = torch.tensor([[[2.0, 4.0, 8.0]], [[4.0, 1.0, 1.0]]]).log()
    mask = torch.tensor([[[1.0, 1.0, 0.0]], [[1.0, 1.0, 0.0]]])
    found = confidence_weights(nll, mask)
    torch.testing.assert_close(found, torch.tensor([[[1.0, 0.5, 0.25]], [[0.5, 2.0, 2.0]]]))


def test_the_mean_is_over_tokens_and_not_over_sequences_or_microbatches():
    """Three tokens at probability 1 in one microbatch, one at 1/5 in the other: mean 3.2 / 4."""
    nll = torch.tensor([[[0.0, 0.0, 0.0]], [[math.log(5.0), 0.0, 0.0]]])
    mask = torch.tensor([[[1.0, 1.0, 1.0]], [[1.0, 0.0, 0.0]]])
    found = confidence_weights(nll, mask)
    torch.testing.assert_close(found[0, 0], torch.full((3,), 1 / 0.8))
    torch.testing.assert_close(found[1, 0, 0].item(), 0.2 / 0.8)


def test_weights_have_mean_one_and_follow_the_order_of_the_probabilities():
    generator = torch.Generator().manual_seed(1)
    nll = torch.rand(3, 2, 40, generator=generator) * 12
    mask = (torch.rand(3, 2, 40, generator=generator) > 0.3).float()
    found = confidence_weights(nll, mask)
    assert ((found.double() * mask).sum() / mask.sum()).item() == pytest.approx(1.0, abs=1e-7)
    assert torch.equal(found.flatten().argsort(), nll.flatten().argsort(descending=True))


@pytest.mark.parametrize("nll", [0.0, 0.1, 6.3, 40.0])
@pytest.mark.parametrize("tokens", [1, 7, 4096])
def test_equal_probabilities_give_weights_of_exactly_one(nll, tokens):
    found = confidence_weights(torch.full((3, 1, tokens), nll), torch.ones(3, 1, tokens))
    assert torch.equal(found, torch.ones(3, 1, tokens))


def test_a_constant_reference_gives_the_loss_of_ntp_bit_for_bit():
    generator = torch.Generator().manual_seed(2)
    nll = torch.rand(2, 37, generator=generator) * 9
    mask = (torch.rand(2, 37, generator=generator) > 0.2).float()
    reference = torch.full((2, 37), 3.3)
    weight = confidence_weights(reference[None], mask[None])[0]
    batch = {"loss_mask": mask, "reference_nll": reference, "weight": weight}
    loss, tokens, report = Prift(ARGS, None).loss(batch, nll)
    expected, expected_tokens, _ = NextToken(ARGS, None).loss(batch, nll)
    assert torch.equal(loss, expected) and torch.equal(tokens, expected_tokens)
    assert torch.equal(report["lm loss"], report["prift loss"])


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        confidence_weights(torch.zeros(1, 1, 2), torch.ones(1, 1, 3))


def _ranks_with_parts_have_the_weights_of_the_whole(rank):
    generator = torch.Generator().manual_seed(3)
    nll = torch.rand(4, 2, 8, generator=generator) * 10
    mask = (torch.rand(4, 2, 8, generator=generator) > 0.4).float()
    whole = confidence_weights(nll, mask)
    # Data-parallel ranks hold every second microbatch, context-parallel ranks a part of each sequence.
    for part in ((slice(rank, None, 2),), (..., [[0, 1, 6, 7], [2, 3, 4, 5]][rank])):
        found = confidence_weights(nll[part], mask[part], torch.distributed.group.WORLD)
        assert torch.equal(found, whole[part])


def test_the_mean_is_over_all_ranks():
    run_ranks(2, _ranks_with_parts_have_the_weights_of_the_whole)
