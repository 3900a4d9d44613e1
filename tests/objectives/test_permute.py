"""The control with permuted weights: the same weights on other tokens of the same sequence."""

import torch

from megatron_remit.objectives.math.weights import permute_weights

WEIGHTS = torch.rand(4, 64, generator=torch.Generator().manual_seed(1)) + 0.5
MASK = (torch.rand(4, 64, generator=torch.Generator().manual_seed(2)) > 0.3).float()
SAMPLES = torch.tensor([100, 101, 102, 103])


def test_each_sequence_keeps_the_histogram_of_its_unmasked_weights():
    found = permute_weights(WEIGHTS, MASK, SAMPLES, seed=7)
    for row in range(4):
        counts = MASK[row] > 0
        assert torch.equal(found[row][counts].sort().values, WEIGHTS[row][counts].sort().values)
        assert not torch.equal(found[row][counts], WEIGHTS[row][counts])
        assert torch.equal(found[row][~counts], WEIGHTS[row][~counts])


def test_the_order_follows_from_seed_and_sample_alone():
    whole = permute_weights(WEIGHTS, MASK, SAMPLES, seed=7)
    # Another microbatch size, as another layout or the reference's regrouping would have it.
    for row in range(4):
        one = slice(row, row + 1)
        assert torch.equal(permute_weights(WEIGHTS[one], MASK[one], SAMPLES[one], seed=7), whole[one])


def test_another_seed_or_sample_gives_another_order():
    whole = permute_weights(WEIGHTS, MASK, SAMPLES, seed=7)
    assert not torch.equal(permute_weights(WEIGHTS, MASK, SAMPLES, seed=8), whole)
    assert not torch.equal(permute_weights(WEIGHTS, MASK, SAMPLES + 4, seed=7), whole)
    # Numbers that differ beyond 32 bits only.
    assert not torch.equal(permute_weights(WEIGHTS, MASK, SAMPLES + 2**32, seed=7), whole)


def test_every_weight_may_land_on_every_token():
    weights = torch.arange(5.0).repeat(2000, 1)
    found = permute_weights(weights, torch.ones(2000, 5), torch.arange(2000), seed=0)
    for place in range(5):
        shares = torch.bincount(found[:, place].long(), minlength=5) / 2000
        # Five standard errors of a share of 1/5 among 2000.
        assert (shares - 0.2).abs().max() < 5 * (0.2 * 0.8 / 2000) ** 0.5


def test_a_sequence_with_every_token_masked_stays_as_it_is():
    weights = torch.rand(1, 8)
    assert torch.equal(permute_weights(weights, torch.zeros(1, 8), torch.tensor([3]), seed=1), weights)
