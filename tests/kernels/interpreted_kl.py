"""The Triton kernels of the KL divergence under Triton's interpreter, against float64.

Run by test_triton_interpreter.py in a process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

import os

import pytest
import torch

from megatron_remit.kernels import kl_triton
from megatron_remit.kernels.logprob_triton import Configuration
from megatron_remit.kernels.vocab_parallel_kl import vocab_parallel_kl
from tests.kernels.test_vocab_parallel_kl import case, chunked, dense
from tests.ranks import run_ranks

assert os.environ["TRITON_INTERPRET"] == "1"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, for -inf


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Segments of 256 and 512 columns in fp32, of 512 and 1024 in 16 bits."""
    monkeypatch.setattr(kl_triton, "statistics_configuration", Configuration(1, 1, 2))
    monkeypatch.setattr(kl_triton, "divergence_configuration", Configuration(1, 2, 2))


def truth(logits, hidden_states, head, direction, vocabulary, temperature):
    """float64, from the reference's logits as they were rounded."""
    exact = torch.eye(head.size(0), dtype=torch.float64)
    return dense(logits.double(), (hidden_states @ head.T).double(), exact, direction.double(), vocabulary, temperature)


# The interpreter truncates to bf16 where a GPU rounds, and the backward pass rounds once more.
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=str
)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("vocabulary", "padded"), [(1, 16), (256, 256), (1281, 1300), (600, 1300)])
def test_divergence_and_gradient_are_those_of_float64(vocabulary, padded, temperature, dtype, error):
    inputs = [part.to(dtype) for part in case(vocabulary, padded, tokens=(3, 2))]
    expected = truth(*inputs, vocabulary, temperature)
    inputs[3] = inputs[3].float()
    kl, gradient = chunked(*inputs, vocabulary, temperature, chunk_tokens=4, implementation="triton")
    assert kl.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(kl.double(), expected[0], rtol=2e-5, atol=2e-5)
    assert (gradient.double() - expected[1]).abs().max() <= error * max(expected[1].abs().max(), 1e-6)
    assert not gradient[..., vocabulary:].any()


def test_without_gradients_the_logits_stay_as_they_are():
    logits, hidden_states, head, _ = (part.float() for part in case(300, 320))
    before = logits.clone()
    kl = vocab_parallel_kl(logits, hidden_states, head, 300, implementation="triton")
    assert torch.equal(logits, before)
    torch.testing.assert_close(kl, vocab_parallel_kl(logits, hidden_states, head, 300), rtol=1e-5, atol=1e-5)


def test_a_policy_equal_to_the_reference_has_no_gradient():
    _, hidden_states, head, direction = (part.float() for part in case(300, 320))
    kl, gradient = chunked(hidden_states @ head.T, hidden_states, head, direction, 300, implementation="triton")
    assert kl.abs().max() < 1e-5 and not gradient.any()


def one_of_two_ranks(rank):
    # The last rank holds tokens and padding, then padding and nothing else.
    for vocabulary, padded in ((1281, 1300), (300, 1300)):
        inputs = [part.float() for part in case(vocabulary, padded, tokens=(3, 2))]
        logits, hidden_states, head, direction = inputs
        expected = truth(*inputs, vocabulary, 2.0)
        mine = slice(rank * 650, (rank + 1) * 650)
        kl, gradient = chunked(
            logits[..., mine], hidden_states, head[mine], direction, vocabulary, 2.0,
            torch.distributed.group.WORLD, implementation="triton",
        )  # fmt: skip
        torch.testing.assert_close(kl.double(), expected[0], rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(gradient.double(), expected[1][..., mine], rtol=1e-4, atol=1e-5)


def test_two_ranks_give_what_one_gives():
    run_ranks(2, one_of_two_ranks)
