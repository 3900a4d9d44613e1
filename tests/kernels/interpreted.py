"""The Triton kernels under Triton's interpreter against float64 and the torch path.

Run by test_triton_interpreter.py in a process of its own, since TRITON_INTERPRET must be set before Triton is imported.
The tiles are small, so that small rows have whole tiles, a masked tail and several segments.
"""

import os
from functools import partial

import pytest
import torch
import triton
import triton.language as tl

from megatron_remit.kernels import logprob_torch, logprob_triton
from megatron_remit.kernels.chunked_head_logprob import chunked_head_nll
from megatron_remit.kernels.vocab_parallel_logprob import vocab_parallel_nll
from tests.kernels.cases import (
    DTYPES,
    ROUNDING,
    adversarial,
    adversarial_targets,
    computed,
    draw,
    float64_truth,
)
from tests.kernels.cases import assert_close as assert_close_after
from tests.ranks import run_ranks

# The interpreter truncates to bf16 where a GPU rounds: the error is up to one unit in the last place, not half a unit.
assert_close = partial(assert_close_after, rounding=ROUNDING | {torch.bfloat16: 2.0**-7})
assert os.environ["TRITON_INTERPRET"] == "1"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, for -inf


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of 128 (fp32) or 256 columns, segments of 256 or 512, in both kernels in two different cuts."""
    monkeypatch.setattr(logprob_triton, "statistics_configuration", logprob_triton.Configuration(1, 1, 2))
    monkeypatch.setattr(logprob_triton, "gradient_configuration", logprob_triton.Configuration(1, 2, 1))


# Tail only; exactly one tile; tiles and a tail; several segments; a tail of one column; more padding than a tile.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocabulary", "padding"), [(1, 0), (97, 0), (256, 0), (300, 20), (1281, 7), (600, 700)])
def test_any_shape_gives_what_float64_gives(vocabulary, padding, dtype):
    drawn = draw(2, 3, vocabulary + padding, vocabulary, dtype, seed=vocabulary)
    expected = float64_truth(*drawn, vocabulary)
    for in_place in (False, True):
        assert_close(computed("triton", *drawn, vocabulary, in_place=in_place), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", adversarial())
def test_adversarial_logits_give_what_float64_gives(name, dtype):
    logits, targets = adversarial()[name].to(dtype), adversarial_targets(name)
    grad_output = torch.linspace(-1, 2, 6).view(3, 2)
    found = computed("triton", logits, targets, grad_output, logits.size(-1))
    assert_close(found, float64_truth(logits, targets, grad_output, logits.size(-1)), dtype)


def test_the_statistics_are_those_of_the_truth():
    logits, targets, _ = draw(3, 2, 1100, 1000, torch.bfloat16)
    targets[targets == -100] = 5
    for first, columns in ((0, 1000), (400, 600), (900, 100), (2000, 0)):
        parts = logprob_triton.row_statistics(logits, targets.flatten(), first, columns)
        assert parts.shape == (3, 3, 6)
        found = logprob_triton.merge(parts, targets.flatten())
        expected = logprob_torch.merge(
            logprob_torch.row_statistics(logits, targets.flatten(), first, columns), targets.flatten()
        )
        for part, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(part, truth, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_rows_and_grad_output_may_lie_anywhere_in_memory():
    wide, targets, _ = draw(6, 4, 700, 690)
    transposed = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).t()
    for logits in (wide.transpose(0, 1).contiguous().transpose(0, 1), wide[::2, 1:3, :695], wide[..., ::2]):
        shape, vocabulary = logits.shape[:2], logits.size(-1) - 10
        cut = targets[: shape[0], : shape[1]].clamp(max=vocabulary - 1)
        for grad_output in (transposed[: shape[0], : shape[1]], torch.tensor(0.5).expand(shape)):
            found = computed("triton", logits, cut, grad_output, vocabulary)
            assert_close(found, float64_truth(logits, cut, grad_output, vocabulary), torch.float32)


def test_ignored_and_masked_rows_are_not_read():
    logits, targets, grad_output = draw(4, 2, 400, 400, ignored=0.0)
    targets[0] = -100
    grad_output[1] = 0.0
    expected = computed("triton", logits, targets, grad_output, 400)[1]
    leaf = logits.clone().requires_grad_()
    nll = vocab_parallel_nll(leaf, targets, 400, implementation="triton")
    leaf.data[:2] = float("nan")
    nll.backward(grad_output)
    assert not leaf.grad[:2].any() and torch.equal(leaf.grad, expected)
    ignored = torch.full_like(targets, -100)
    assert not vocab_parallel_nll(logits * float("nan"), ignored, 400, implementation="triton").any()


def test_nan_stays_nan_and_a_row_of_minus_infinity_has_no_probabilities():
    logits, targets, _ = draw(1, 3, 300, 300, ignored=0.0)
    logits[0, 0, 123] = float("nan")
    logits[0, 1] = float("-inf")
    nll = vocab_parallel_nll(logits, targets, 300, implementation="triton")[0]
    assert nll.isnan().tolist() == [True, True, False]


def test_a_rows_bits_depend_neither_on_its_neighbours_nor_on_the_run():
    logits, targets, grad_output = draw(5, 2, 1281, 1281, torch.bfloat16)
    whole = computed("triton", logits, targets, grad_output, 1281)
    again = computed("triton", logits, targets, grad_output, 1281)
    alone = computed("triton", logits[3:4, 1:], targets[3:4, 1:], grad_output[3:4, 1:], 1281)
    for first, second, one in zip(whole, again, alone, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first[3:4, 1:], one)


def test_the_chunked_head_gives_the_bits_of_the_whole_logits():
    generator = torch.Generator().manual_seed(2)
    hidden, weight = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((70, 2, 16), (140, 16)))
    targets = torch.randint(0, 130, (70, 2), generator=generator)
    whole = vocab_parallel_nll(hidden @ weight.t(), targets, 130, implementation="triton")
    found = chunked_head_nll(hidden, weight, targets, 130, implementation="triton", chunk_bytes=1)
    assert torch.equal(found, whole)


def test_two_ranks_give_what_one_gives():
    run_ranks(2, one_of_two_ranks)


def one_of_two_ranks(rank):
    logits, targets, grad_output = draw(3, 2, 600, 590)
    half = slice(300 * rank, 300 * rank + 300)
    for case in (logits, logits.clone().index_fill(-1, torch.arange(300), float("-inf"))):
        inside = targets.clamp(min=300) if case is not logits else targets
        alone = computed("torch", case, inside, grad_output, 590)
        nll, gradient = computed("triton", case[..., half], inside, grad_output, 590, torch.distributed.group.WORLD)
        torch.testing.assert_close(nll, alone[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient, alone[1][..., half], rtol=1e-5, atol=1e-6)


def test_row_offsets_are_64_bits_wide():
    """Row 7 of [S, 2, 2^29] begins beyond 2^31 elements; in 32 bits its offset would be negative."""
    out = torch.zeros(1, dtype=torch.int64)
    offset_kernel[(1,)](out, 7, 2, 2**30, 2**29)
    assert out.item() == 3 * 2**30 + 2**29


@triton.jit
def offset_kernel(out_ptr, row, batch, stride_s, stride_b):
    tl.store(out_ptr, logprob_triton._row_offset(tl.program_id(0) + row, batch, stride_s, stride_b))
