"""The chunked head on one rank: the bits of the whole logits, without the whole logits."""

import pytest
import torch

from megatron_remit import cpu
from megatron_remit.kernels.chunked_head_logprob import (
    CHUNK_BYTES,
    chunked_head_nll,
    logits_in_chunks,
    rows_of_a_chunk,
)
from megatron_remit.kernels.vocab_parallel_logprob import vocab_parallel_nll

cpu.install()


def draw(sequence, batch, hidden, vocabulary, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(sequence, batch, hidden, generator=generator).to(dtype)
    weight = (0.2 * torch.randn(vocabulary, hidden, generator=generator)).to(dtype)
    targets = torch.randint(0, vocabulary, (sequence, batch), generator=generator)
    return states, weight, targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("sequence", "batch", "hidden", "vocabulary"),
    [
        (513, 1, 96, 520),
        (300, 3, 64, 2000),
        (129, 1, 512, 700),
        (260, 1, 48, 900),
        (1, 1, 32, 100),
    ],
)
def test_any_chunk_gives_the_bits_of_the_whole_logits(sequence, batch, hidden, vocabulary, dtype):
    """So a reference that equals the policy gives delta exactly 0, whether its logits are chunked or not."""
    states, weight, targets = draw(sequence, batch, hidden, vocabulary, dtype)
    targets[0, 0] = -100
    whole = vocab_parallel_nll(torch.matmul(states, weight.t()), targets, vocabulary - 3)
    for chunk_bytes in (1, 200 * vocabulary * dtype.itemsize, CHUNK_BYTES):
        found = chunked_head_nll(states, weight, targets, vocabulary - 3, chunk_bytes=chunk_bytes)
        assert torch.equal(found, whole)


def test_no_chunk_is_larger_than_asked_and_all_rows_are_there_once():
    states, weight, _ = draw(1000, 1, 8, 300, torch.bfloat16)
    chunk_bytes = 256 * 300 * 2
    seen, addresses = [], set()
    for rows, logits in logits_in_chunks(states.flatten(0, 1), weight, chunk_bytes=chunk_bytes):
        assert logits.numel() * 2 <= chunk_bytes
        assert torch.equal(logits, states.flatten(0, 1)[rows] @ weight.t())
        seen += range(1000)[rows]
        addresses.add(logits.data_ptr())
    assert seen == list(range(1000))
    assert len(addresses) == 1, "one buffer for all chunks"


def test_logits_are_scaled_where_megatron_scales_them():
    states, weight, targets = draw(200, 1, 16, 50, torch.float32)
    expected = vocab_parallel_nll(0.5 * torch.matmul(states, weight.t()), targets, 50)
    found = chunked_head_nll(states, weight, targets, 50, scale_logits=lambda logits: 0.5 * logits, chunk_bytes=1)
    assert torch.equal(found, expected)


def test_nothing_is_kept_for_a_backward_pass():
    states, weight, targets = draw(10, 2, 16, 50, torch.float32)
    weight.requires_grad_()
    assert not chunked_head_nll(states, weight, targets, 50).requires_grad


@pytest.mark.parametrize(
    ("rows", "vocabulary", "expected"),
    [
        (8192, 131072, 384),  # 96 MiB per chunk, 2 GiB in all
        (8192, 100352, 384),
        (8192, 32000, 1408),  # six equal parts, not five of 1536 and a small one
        (1500, 32000, 1500),  # fits
        (8192, 10**9, 128),
    ],
)
def test_chunks_of_bf16_logits(rows, vocabulary, expected):
    assert rows_of_a_chunk(rows, 2 * vocabulary, CHUNK_BYTES) == expected
