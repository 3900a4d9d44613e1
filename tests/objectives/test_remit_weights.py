"""Equations 3-5 of the paper: per-token weights from the NLLs of policy and reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_remit.objectives.math.weights import remit_weights, sequence_mean
from tests.ranks import run_ranks


def weights(policy, reference, mask=None, epsilon=0.2, centering="sequence"):
    policy, reference = torch.tensor(policy), torch.tensor(reference)
    mask = torch.ones_like(policy) if mask is None else torch.tensor(mask)
    return remit_weights(policy, reference, mask, epsilon, centering)


def test_hand_computed_case():
    # delta = [1.0, -0.5, 0.1], mean 0.2, centered [0.8, -0.7, -0.1]
    found = weights([[3.0, 1.0, 2.1]], [[2.0, 1.5, 2.0]])
    torch.testing.assert_close(found.delta_BS, torch.tensor([[1.0, -0.5, 0.1]]))
    # 2*sigmoid: 1.379949 (clipped to 1.2), 0.663627 (clipped to 0.8), 0.950042
    torch.testing.assert_close(found.weight_BS, torch.tensor([[1.2, 0.8, 0.950042]]), atol=1e-6, rtol=0)
    assert found.clipped_high_BS.tolist() == [[True, False, False]]
    assert found.clipped_low_BS.tolist() == [[False, True, False]]


def test_the_mean_counts_only_unmasked_tokens_of_each_sequence():
    found = weights(
        [[2.0, 4.0, 100.0], [1.0, 1.0, 1.0]],
        [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]],
        mask=[[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]],
        epsilon=None,
    )
    # first sequence: deltas 1 and 3, mean 2; second: all deltas equal the mean.
    expected = [2 / (1 + math.exp(1)), 2 / (1 + math.exp(-1))]
    torch.testing.assert_close(found.weight_BS[0, :2], torch.tensor(expected))
    assert found.weight_BS[1].tolist() == [1.0, 1.0, 1.0]


def test_no_centering_leaves_the_gap_as_it_is():
    found = weights([[1.0, 1.0]], [[0.0, 0.0]], epsilon=None, centering="none")
    torch.testing.assert_close(found.weight_BS, torch.full((1, 2), 2 / (1 + math.exp(-1))))


def test_equal_models_give_weight_exactly_one():
    nll = torch.rand(3, 17) * 9
    found = remit_weights(nll, nll.clone(), torch.ones_like(nll), 0.2)
    assert torch.equal(found.delta_BS, torch.zeros_like(nll))
    assert torch.equal(found.weight_BS, torch.ones_like(nll))


def test_epsilon_zero_gives_weight_exactly_one():
    found = remit_weights(torch.rand(2, 9), torch.rand(2, 9), torch.ones(2, 9), 0.0)
    assert torch.equal(found.weight_BS, torch.ones(2, 9))


def test_no_gradient_passes_through_the_weight():
    policy = torch.rand(2, 5, requires_grad=True)
    found = remit_weights(policy, torch.rand(2, 5), torch.ones(2, 5), 0.2)
    assert not found.weight_BS.requires_grad
    (found.weight_BS * policy).sum().backward()
    assert torch.equal(policy.grad, found.weight_BS)


def test_a_sequence_with_every_token_masked_is_finite():
    found = remit_weights(torch.rand(1, 4), torch.rand(1, 4), torch.zeros(1, 4), 0.2)
    assert torch.isfinite(found.weight_BS).all()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 33),
    seed=st.integers(0, 10_000),
    epsilon=st.one_of(st.none(), st.floats(0, 1)),
    centering=st.sampled_from(["sequence", "none"]),
)
def test_agrees_with_a_float64_computation_token_by_token(rows, columns, seed, epsilon, centering):
    generator = torch.Generator().manual_seed(seed)
    policy = torch.rand(rows, columns, generator=generator) * 12
    reference = torch.rand(rows, columns, generator=generator) * 12
    mask = (torch.rand(rows, columns, generator=generator) > 0.3).float()
    found = remit_weights(policy, reference, mask, epsilon, centering).weight_BS
    for row in range(rows):
        gaps = [policy[row, t].double().item() - reference[row, t].double().item() for t in range(columns)]
        kept = [gap for gap, counted in zip(gaps, mask[row].tolist(), strict=True) if counted]
        mean = sum(kept) / len(kept) if kept and centering == "sequence" else 0.0
        for t, gap in enumerate(gaps):
            weight = 2 / (1 + math.exp(mean - gap))
            if epsilon is not None:
                weight = min(max(weight, 1 - epsilon), 1 + epsilon)
            assert found[row, t].item() == pytest.approx(weight, abs=2e-6)


@pytest.mark.parametrize("epsilon", [-0.1, 1.5])
def test_epsilon_outside_the_unit_interval_is_refused(epsilon):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        remit_weights(torch.rand(1, 2), torch.rand(1, 2), torch.ones(1, 2), epsilon)


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        remit_weights(torch.rand(1, 2), torch.rand(1, 3), torch.ones(1, 2), 0.2)


def test_unknown_centering_is_refused():
    with pytest.raises(ValueError, match="centering"):
        remit_weights(torch.rand(1, 2), torch.rand(1, 2), torch.ones(1, 2), 0.2, "batch")


def _mean_of_a_split_sequence(rank):
    generator = torch.Generator().manual_seed(3)
    value, mask = torch.randn(2, 8, generator=generator), (torch.rand(2, 8, generator=generator) > 0.4).float()
    whole = sequence_mean(value, mask)
    # Zigzag, as Megatron splits for context parallelism: rank 0 holds chunks 0 and 3, rank 1 chunks 1 and 2.
    columns = [0, 1, 6, 7] if rank == 0 else [2, 3, 4, 5]
    part = sequence_mean(value[:, columns], mask[:, columns], torch.distributed.group.WORLD)
    torch.testing.assert_close(part, whole)


def test_the_mean_is_over_the_whole_sequence_when_ranks_hold_parts_of_it():
    run_ranks(2, _mean_of_a_split_sequence)
