"""RHO-1's choice of tokens, from the excess loss of policy over reference."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_remit.objectives.math.selection import choose_in_global_batch, select_highest, select_in_microbatch


def test_hand_computed_case():
    excess = torch.tensor([[0.3, 2.0, -1.0, 0.4, 0.5], [5.0, 4.0, 3.0, 2.0, 1.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0, 1.0]])
    # 0.6 of 5 tokens are 3; 0.6 of 4 are 2.4, which rounds to 2. The masked 5.0 is never kept.
    assert select_highest(excess, mask, 0.6).tolist() == [
        [False, True, False, True, True],
        [False, True, True, False, False],
    ]


def test_a_sequence_is_ranked_by_itself_and_a_microbatch_as_a_whole():
    excess, mask = torch.tensor([[4.0, 3.0, 2.0], [1.0, 0.0, -1.0]]), torch.ones(2, 3)
    by_sequence = select_in_microbatch(excess, mask, 0.34, "sequence")
    assert by_sequence.tolist() == [[True, False, False], [True, False, False]]
    by_microbatch = select_in_microbatch(excess, mask, 0.34, "microbatch")
    assert by_microbatch.tolist() == [[True, True, False], [False, False, False]]


def test_the_global_batch_is_ranked_over_all_its_microbatches():
    excess = torch.tensor([[[4.0, 3.0]], [[2.0, 5.0]], [[-1.0, 6.0]]])
    kept = choose_in_global_batch(partial(select_highest, ratio=0.5), excess, torch.ones(3, 1, 2))
    assert kept.tolist() == [[[True, False]], [[False, True]], [[False, True]]]


def test_of_equal_values_the_first_tokens_are_kept():
    kept = select_highest(torch.zeros(1, 1000), torch.ones(1, 1000), 0.25)
    assert torch.equal(kept[0], torch.arange(1000) < 250)


@settings(max_examples=80, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 40), seed=st.integers(0, 10_000), ratio=st.floats(0.01, 1.0))
def test_agrees_with_a_choice_token_by_token(rows, columns, seed, ratio):
    generator = torch.Generator().manual_seed(seed)
    # Few distinct values, so that there are ties.
    excess = torch.randint(-3, 4, (rows, columns), generator=generator) / 4
    mask = (torch.rand(rows, columns, generator=generator) > 0.3).float()
    found = select_highest(excess, mask, ratio)
    for row in range(rows):
        places = [t for t in range(columns) if mask[row, t] > 0]
        count = min(len(places), max(1, round(len(places) * ratio)))
        best = sorted(places, key=lambda t, row=row: (-excess[row, t].item(), t))[:count]
        assert torch.nonzero(found[row])[:, 0].tolist() == sorted(best)


def test_ratio_one_keeps_every_unmasked_token_and_no_other():
    mask = (torch.rand(3, 50) > 0.5).float()
    for scope in ("sequence", "microbatch"):
        assert torch.equal(select_in_microbatch(torch.randn(3, 50), mask, 1.0, scope).float(), mask)


def test_a_small_ratio_keeps_one_token_and_a_masked_sequence_none():
    kept = select_highest(torch.randn(2, 9), torch.tensor([[1.0] * 9, [0.0] * 9]), 0.001)
    assert kept.sum(dim=1).tolist() == [1, 0]


@pytest.mark.parametrize("ratio", [0.0, -0.2, 1.01, float("nan")])
def test_ratio_outside_the_unit_interval_is_refused(ratio):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        select_highest(torch.zeros(1, 2), torch.ones(1, 2), ratio)


def test_different_shapes_and_unknown_scopes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        select_highest(torch.zeros(1, 2), torch.ones(1, 3), 0.5)
    with pytest.raises(ValueError, match="scope"):
        select_in_microbatch(torch.zeros(1, 2), torch.ones(1, 2), 0.5, "batch")
