"""The chunked, vocabulary-parallel KL divergence against a dense float64 computation: values and gradients."""

import pytest
import torch

from megatron_remit.kernels.vocab_parallel_kl import tokens_of_a_chunk, vocab_parallel_kl
from tests.ranks import run_ranks


def case(vocabulary, padded, tokens=(7, 3), hidden=5, seed=0, scale=3.0):
    """Policy logits with a padded vocabulary, the reference's hidden states and head, and a weight for each token."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(*tokens, padded, generator=draw, dtype=torch.float64) * scale
    hidden_states = torch.randn(*tokens, hidden, generator=draw, dtype=torch.float64)
    head = torch.randn(padded, hidden, generator=draw, dtype=torch.float64) * scale
    direction = torch.randn(*tokens, generator=draw, dtype=torch.float64)
    return logits, hidden_states, head, direction


def dense(logits, hidden_states, head, direction, vocabulary, temperature):
    """By torch's own kl_div over the whole vocabulary: KL of each token, and the gradient of their weighted sum."""
    logits = logits.detach().clone().requires_grad_()
    log_policy = (logits[..., :vocabulary] / temperature).log_softmax(-1)
    log_reference = ((hidden_states @ head.T)[..., :vocabulary] / temperature).log_softmax(-1)
    kl = torch.nn.functional.kl_div(log_policy, log_reference, reduction="none", log_target=True).sum(-1)
    (kl * direction).sum().backward()
    return kl.detach(), logits.grad


def chunked(logits, hidden_states, head, direction, *options, **named):
    logits = logits.detach().clone().requires_grad_()
    kl = vocab_parallel_kl(logits, hidden_states, head, *options, **named)
    (kl * direction).sum().backward()
    return kl.detach(), logits.grad


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("vocabulary", "padded", "chunk"), [(11, 16, 4), (16, 16, None), (1, 8, 1), (515, 528, 5)])
def test_float64_agrees_to_rounding(vocabulary, padded, chunk, temperature):
    inputs = case(vocabulary, padded)
    expected = dense(*inputs, vocabulary, temperature)
    found = chunked(*inputs, vocabulary, temperature, chunk_tokens=chunk)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    assert torch.equal(found[1][..., vocabulary:], torch.zeros_like(found[1][..., vocabulary:]))


@pytest.mark.parametrize(
    ("dtype", "kl_error", "gradient_error"),
    [
        (torch.float32, 2e-5, 2e-6),
        (
            torch.bfloat16,
            2e-5,
            8e-3,
        ),  # the gradient is rounded to bf16's 8 bits twice: when it is made and when it is scaled
    ],
)
def test_lower_precision_agrees_with_float64_on_the_same_inputs(dtype, kl_error, gradient_error):
    logits, hidden_states, head, direction = (part.to(dtype) for part in case(515, 528))
    # The reference's logits are rounded to the dtype, as a model's are; the dense computation starts from those.
    reference_logits = hidden_states @ head.T
    exact = torch.eye(528, dtype=torch.float64)
    expected = dense(logits.double(), reference_logits.double(), exact, direction.double(), 515, 2.0)
    found = chunked(logits, hidden_states, head, direction.float(), 515, 2.0, chunk_tokens=21)
    assert found[0].dtype == torch.float32 and found[1].dtype == dtype
    torch.testing.assert_close(found[0].double(), expected[0], rtol=kl_error, atol=kl_error)
    bound = gradient_error * expected[1].abs().max()
    assert (found[1].double() - expected[1]).abs().max() < bound


def test_logits_far_from_zero_are_no_problem():
    inputs = case(11, 16, scale=400.0)
    found = chunked(*inputs, 11)
    for one, other in zip(found, dense(*inputs, 11, 1.0), strict=True):
        torch.testing.assert_close(one, other)


def test_a_policy_equal_to_the_reference_has_divergence_zero_and_no_gradient():
    _, hidden_states, head, direction = case(11, 16)
    kl, gradient = chunked(hidden_states @ head.T, hidden_states, head, direction, 11)
    assert kl.abs().max() < 1e-14 and gradient.abs().max() < 1e-14


def test_the_references_logits_are_scaled_before_they_are_compared():
    logits, hidden_states, head, direction = case(11, 16)
    found = chunked(logits, hidden_states, head, direction, 11, scale_reference=lambda values: 0.5 * values)
    for one, other in zip(found, dense(logits, hidden_states, 0.5 * head, direction, 11, 1.0), strict=True):
        torch.testing.assert_close(one, other)


def test_the_logits_may_be_overwritten_before_the_backward_pass():
    logits, hidden_states, head, direction = case(11, 16)
    expected = dense(logits, hidden_states, head, direction, 11, 1.0)[1]
    leaf = logits.clone().requires_grad_()
    shared = leaf.clone()
    kl = vocab_parallel_kl(shared, hidden_states, head, 11)
    shared.data.zero_()
    (kl * direction).sum().backward()
    torch.testing.assert_close(leaf.grad, expected)


def test_without_gradients_none_is_made():
    logits, hidden_states, head, direction = case(11, 16)
    with torch.no_grad():
        kl = vocab_parallel_kl(logits.requires_grad_(), hidden_states, head, 11)
    assert not kl.requires_grad
    torch.testing.assert_close(kl, dense(logits, hidden_states, head, direction, 11, 1.0)[0])


def test_shapes_and_temperatures_that_do_not_fit_are_refused():
    logits, hidden_states, head, _ = case(11, 16)
    with pytest.raises(ValueError, match="must agree"):
        vocab_parallel_kl(logits, hidden_states[:-1], head, 11)
    with pytest.raises(ValueError, match="must agree"):
        vocab_parallel_kl(logits, hidden_states, head[:-1], 11)
    with pytest.raises(ValueError, match="temperature"):
        vocab_parallel_kl(logits, hidden_states, head, 11, 0.0)


@pytest.mark.parametrize(("rows", "plain", "fused"), [(100352, 512, 640), (25088, 512, 2560), (2048, 4096, 32768)])
def test_a_chunk_has_whole_tiles_and_does_not_read_the_head_for_a_few_tokens(rows, plain, fused):
    assert (tokens_of_a_chunk(rows, "torch"), tokens_of_a_chunk(rows, "triton")) == (plain, fused)


def _each_rank_has_its_columns_of_the_gradient(rank):
    # 515 of 528 rows: padding on the last rank only; 11 of 32: the last rank holds padding and nothing else.
    for vocabulary, padded in ((515, 528), (11, 32)):
        logits, hidden_states, head, direction = case(vocabulary, padded)
        expected = dense(logits, hidden_states, head, direction, vocabulary, 2.0)
        half = padded // 2
        mine = slice(rank * half, (rank + 1) * half)
        found = chunked(
            logits[..., mine],
            hidden_states,
            head[mine],
            direction,
            vocabulary,
            2.0,
            torch.distributed.group.WORLD,
            chunk_tokens=4,
        )
        torch.testing.assert_close(found[0], expected[0], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(found[1], expected[1][..., mine], rtol=1e-11, atol=1e-12)


def test_two_tensor_parallel_ranks_agree_with_the_dense_computation():
    run_ranks(2, _each_rank_has_its_columns_of_the_gradient)
