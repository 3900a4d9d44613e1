"""What is chosen among the tokens of a sequence or batch is the same when ranks hold parts of it."""

from functools import partial

import torch

from megatron_remit.objectives.math.selection import choose_in_global_batch, select_highest, select_in_microbatch
from megatron_remit.objectives.math.weights import permute_weights
from megatron_remit.parallel import own_part, whole_batch, whole_sequence
from tests.ranks import run_ranks

# Zigzag, as Megatron splits for context parallelism: rank 0 holds chunks 0 and 3, rank 1 chunks 1 and 2.
COLUMNS = {0: [0, 1, 6, 7], 1: [2, 3, 4, 5]}


def _split_values_give_the_choice_of_whole_ones(rank):
    generator = torch.Generator().manual_seed(3)
    group = torch.distributed.group.WORLD
    # Three microbatches of two sequences on each of two data-parallel ranks; few distinct values, so there are ties.
    excess = torch.randint(-4, 5, (3, 2, 2, 8), generator=generator) / 2
    mask = (torch.rand(3, 2, 2, 8, generator=generator) > 0.3).float()
    one, one_mask, columns = excess[0, 0], mask[0, 0], COLUMNS[rank]

    assert torch.equal(whole_sequence(one[:, columns], group), one)
    assert torch.equal(own_part(one, group), one[:, columns])
    assert torch.equal(whole_batch(excess[:, rank], group), excess)

    for scope in ("sequence", "microbatch"):
        whole = select_in_microbatch(one, one_mask, 0.6, scope)
        part = select_in_microbatch(one[:, columns], one_mask[:, columns], 0.6, scope, group)
        assert torch.equal(part, whole[:, columns])

    samples, weights = torch.tensor([5, 6]), torch.rand(2, 8, generator=generator)
    whole = permute_weights(weights, one_mask, samples, seed=1)
    part = permute_weights(weights[:, columns], one_mask[:, columns], samples, 1, group)
    assert torch.equal(part, whole[:, columns])

    # One rank reads the same twelve sequences as six microbatches.
    choice = partial(select_highest, ratio=0.6)
    alone = choose_in_global_batch(choice, excess.view(6, 2, 8), mask.view(6, 2, 8)).view(3, 2, 2, 8)
    dealt = choose_in_global_batch(choice, excess[:, rank], mask[:, rank], dp_group=group)
    assert torch.equal(dealt, alone[:, rank])
    split = choose_in_global_batch(
        choice, excess.view(6, 2, 8)[..., columns], mask.view(6, 2, 8)[..., columns], None, group
    )
    assert torch.equal(split, alone.view(6, 2, 8)[..., columns])


def test_ranks_that_hold_parts_choose_as_one_that_holds_all():
    run_ranks(2, _split_values_give_the_choice_of_whole_ones)


def _parts_of_megatrons_cut_come_together(rank, size):
    # Imported late: every spawned rank imports this file, and only this test's need Megatron.
    from megatron.core.utils import get_batch_on_this_cp_rank

    whole = torch.arange(2 * 8 * size, dtype=torch.float32).reshape(2, -1)
    group = torch.distributed.group.WORLD
    part = get_batch_on_this_cp_rank({"nll": whole.clone()}, is_hybrid_cp=False, cp_group=group)["nll"]
    assert part.shape == (2, 8) and torch.equal(whole_sequence(part, group), whole)


def test_parts_of_a_sequence_come_together_in_order():
    """Against Megatron's own cut for context parallelism."""
    run_ranks(2, _parts_of_megatrons_cut_come_together, 2)
