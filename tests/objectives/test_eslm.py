"""ESLM's choice of tokens: those whose loss is at least the value at risk."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_remit.objectives.math.selection import choose_in_global_batch, choose_in_microbatch, select_at_risk
from tests.ranks import run_ranks


def test_hand_computed_case():
    score = torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0], [9.0, 1.0, 2.0, 3.0, 4.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0, 1.0]])
    # 0.4 of 5 tokens: the quantile is the second smallest, 2. 0.4 of 4: also the second, 2; the masked 9 is no token.
    assert select_at_risk(score, mask, 0.4).tolist() == [
        [True, False, True, True, True],
        [False, False, True, True, True],
    ]


def test_tokens_that_equal_the_quantile_are_all_kept():
    score = torch.tensor([[1.0, 2.0, 2.0, 2.0, 3.0]])
    assert select_at_risk(score, torch.ones(1, 5), 0.5).tolist() == [[False, True, True, True, True]]


def test_alpha_zero_keeps_every_unmasked_token_and_a_masked_row_keeps_none():
    mask = (torch.rand(3, 50, generator=torch.Generator().manual_seed(4)) > 0.5).float()
    mask[1] = 0.0
    assert torch.equal(select_at_risk(torch.randn(3, 50), mask, 0.0).float(), mask)
    assert select_at_risk(torch.randn(3, 50), mask, 0.99).sum(dim=1).tolist() == [1, 0, 1]


def test_the_quantile_is_that_of_the_scope():
    score, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2)
    choice = partial(select_at_risk, alpha=0.6)
    assert choose_in_microbatch(choice, score, mask, "sequence").tolist() == [[False, True], [False, True]]
    assert choose_in_microbatch(choice, score, mask, "microbatch").tolist() == [[False, False], [True, True]]
    step = torch.tensor([[[1.0, 9.0]], [[8.0, 2.0]], [[7.0, 3.0]]])
    kept = choose_in_global_batch(choice, step, torch.ones(3, 1, 2))
    assert kept.tolist() == [[[False, True]], [[True, False]], [[True, False]]]


@settings(max_examples=60, deadline=None)
@given(columns=st.integers(1, 40), seed=st.integers(0, 10_000), alpha=st.floats(0.0, 0.99))
def test_agrees_with_the_definition_token_by_token(columns, seed, alpha):
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(-3, 4, (1, columns), generator=generator) / 4
    mask = (torch.rand(1, columns, generator=generator) > 0.3).float()
    values = sorted(score[0, t].item() for t in range(columns) if mask[0, t] > 0)
    found = select_at_risk(score, mask, alpha)[0].tolist()
    if not values:
        assert not any(found)
        return
    at_risk = min(v for v in values if sum(other <= v for other in values) >= math.ceil(alpha * len(values)))
    assert found == [mask[0, t].item() > 0 and score[0, t].item() >= at_risk for t in range(columns)]


@pytest.mark.parametrize("alpha", [-0.1, 1.0, float("nan")])
def test_alpha_outside_the_half_open_unit_interval_is_refused(alpha):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        select_at_risk(torch.zeros(1, 2), torch.ones(1, 2), alpha)
    with pytest.raises(ValueError, match="one shape"):
        select_at_risk(torch.zeros(1, 2), torch.ones(1, 3), 0.5)


def _parts_give_the_choice_of_the_whole(rank):
    generator = torch.Generator().manual_seed(5)
    group, columns = torch.distributed.group.WORLD, [[0, 1, 6, 7], [2, 3, 4, 5]][rank]
    score = torch.randint(-4, 5, (3, 2, 2, 8), generator=generator) / 2
    mask = (torch.rand(3, 2, 2, 8, generator=generator) > 0.3).float()
    choice = partial(select_at_risk, alpha=0.4)
    one, one_mask = score[0, 0], mask[0, 0]
    for scope in ("sequence", "microbatch"):
        whole = choose_in_microbatch(choice, one, one_mask, scope)
        part = choose_in_microbatch(choice, one[:, columns], one_mask[:, columns], scope, group)
        assert torch.equal(part, whole[:, columns])
    alone = choose_in_global_batch(choice, score.view(6, 2, 8), mask.view(6, 2, 8)).view(3, 2, 2, 8)
    dealt = choose_in_global_batch(choice, score[:, rank], mask[:, rank], dp_group=group)
    assert torch.equal(dealt, alone[:, rank])


def test_ranks_that_hold_parts_choose_as_one_that_holds_all():
    run_ranks(2, _parts_give_the_choice_of_the_whole)
