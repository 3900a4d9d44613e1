"""The mean over each document's own tokens, for whole sequences and for parts of them on two ranks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_remit.objectives.math.weights import document_ids, document_mean, remit_weights
from tests.ranks import run_ranks

END = 9


def test_a_document_ends_with_its_end_token():
    labels = torch.tensor([[4, 5, END, 6, END, END, 7, 8], [END, 1, 1, 1, 1, 1, 1, END]])
    assert document_ids(labels, END).tolist() == [[0, 0, 0, 1, 1, 2, 3, 3], [0, 1, 1, 1, 1, 1, 1, 1]]


def test_hand_computed_means():
    # The head of the sequence is a document of its own; masked tokens do not count; the last has no unmasked token.
    labels = torch.tensor([[4, END, 5, 6, END, 7]])
    value = torch.tensor([[1.0, 3.0, 10.0, 99.0, 20.0, 5.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0, 1.0, 0.0]])
    assert document_mean(value, mask, document_ids(labels, END)).tolist() == [[2.0, 2.0, 15.0, 15.0, 15.0, 0.0]]


def test_hand_computed_weights():
    # Deltas 1, 3 | 10, 12: each document's mean is subtracted, so both get the same two weights.
    labels = torch.tensor([[4, END, 5, 6]])
    found = remit_weights(
        torch.tensor([[1.0, 3.0, 10.0, 12.0]]),
        torch.zeros(1, 4),
        torch.ones(1, 4),
        None,
        "document",
        document_ids_BS=document_ids(labels, END),
    )
    low, high = 2 / (1 + math.exp(1)), 2 / (1 + math.exp(-1))
    torch.testing.assert_close(found.weight_BS, torch.tensor([[low, high, low, high]]))


def test_one_document_is_centered_like_a_sequence():
    policy, reference, mask = torch.rand(3, 11), torch.rand(3, 11), (torch.rand(3, 11) > 0.3).float()
    ids = torch.zeros(3, 11, dtype=torch.int64)
    found = remit_weights(policy, reference, mask, 0.2, "document", document_ids_BS=ids).weight_BS
    torch.testing.assert_close(found, remit_weights(policy, reference, mask, 0.2, "sequence").weight_BS)


def test_equal_models_give_weight_exactly_one():
    nll = torch.rand(2, 7)
    found = remit_weights(
        nll, nll.clone(), torch.ones(2, 7), 0.2, "document", document_ids_BS=torch.arange(7).expand(2, 7)
    )
    assert torch.equal(found.weight_BS, torch.ones(2, 7))


def test_centering_by_document_without_document_ids_is_refused():
    with pytest.raises(ValueError, match="document_ids_BS"):
        remit_weights(torch.rand(1, 2), torch.rand(1, 2), torch.ones(1, 2), 0.2, "document")


def means_one_by_one(value, mask, labels):
    """Plain Python: walk along each row and average what stands between two end tokens."""
    rows = []
    for row in range(value.size(0)):
        found, start = [], 0
        for t in range(value.size(1)):
            if labels[row, t] != END and t < value.size(1) - 1:
                continue
            part = range(start, t + 1)
            kept = [value[row, i].item() for i in part if mask[row, i]]
            found += [sum(kept) / len(kept) if kept else 0.0] * len(part)
            start = t + 1
        rows.append(found)
    return torch.tensor(rows, dtype=torch.float64)


def draw(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 5
    mask = (torch.rand(rows, columns, generator=generator) > 0.3).double()
    labels = torch.randint(6, END + 1, (rows, columns), generator=generator)
    return value, mask, labels


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 33), seed=st.integers(0, 10_000))
def test_agrees_with_a_walk_along_the_row(rows, columns, seed):
    value, mask, labels = draw(rows, columns, seed)
    found = document_mean(value, mask, document_ids(labels, END))
    torch.testing.assert_close(found, means_one_by_one(value, mask, labels), rtol=1e-12, atol=1e-12)


def _means_of_split_sequences(rank):
    # Zigzag, as Megatron splits for context parallelism: rank 0 holds chunks 0 and 3, rank 1 chunks 1 and 2.
    for seed in range(5):
        value, mask, labels = draw(3, 24, seed)
        chunks = torch.arange(24).chunk(4)
        columns = torch.cat([chunks[rank], chunks[3 - rank]])
        ids = document_ids(labels, END)[:, columns]
        found = document_mean(value[:, columns], mask[:, columns], ids, torch.distributed.group.WORLD)
        expected = means_one_by_one(value, mask, labels)
        torch.testing.assert_close(found, expected[:, columns], rtol=1e-12, atol=1e-12)
        alone = document_mean(value[:, columns], mask[:, columns], ids)
        assert not torch.allclose(alone, expected[:, columns]), "no document spans the two ranks: the test says nothing"


def test_a_document_that_spans_two_ranks_has_one_mean():
    run_ranks(2, _means_of_split_sequences)
