"""Logits that are hard to get right, and their NLL and gradient in float64: shared by every test of the kernels."""

import torch

from megatron_remit.kernels.vocab_parallel_logprob import vocab_parallel_nll

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Relative. The error of fp32 exponentials is added to it: see `assert_close`.
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def draw(sequence, batch, width, vocabulary, dtype=torch.float32, seed=0, ignored=0.2):
    """Random logits, targets of which a share is -100, and an uneven grad_output."""
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(sequence, batch, width, generator=generator)).to(dtype)
    targets = torch.randint(0, vocabulary, (sequence, batch), generator=generator)
    targets[torch.rand(sequence, batch, generator=generator) < ignored] = -100
    return logits, targets, torch.randn(sequence, batch, generator=generator)


def float64_truth(logits, targets, grad_output, vocabulary):
    """NLL and gradient by torch's own cross-entropy of the same logits in float64, without the padding columns."""
    exact = logits.detach().double().requires_grad_()
    nll = torch.nn.functional.cross_entropy(
        exact[..., :vocabulary].flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
    ).view(targets.shape)
    nll.backward(grad_output.double())
    return nll.detach(), exact.grad


def computed(implementation, logits, targets, grad_output, vocabulary, group=None, in_place=False):
    """NLL and gradient of ours. It asserts that the forward pass leaves the logits as they were."""
    leaf = logits.detach().requires_grad_()
    before = leaf.detach().clone()
    # Not a leaf, as in a model: an in-place backward pass writes over `own`.
    own = leaf * 1
    if own.stride() != leaf.stride():
        own = leaf.view_as(leaf)
    nll = vocab_parallel_nll(own, targets, vocabulary, group, implementation, in_place)
    assert torch.equal(own.detach(), before)
    nll.backward(grad_output)
    return nll.detach(), leaf.grad


def assert_close(found, expected, dtype, rounding=ROUNDING):
    """NLL within 1e-5 of float64 (relative where it is large), the gradient within one rounding of ``dtype``."""
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found[1].double(), expected[1], rtol=rounding[dtype] + 2e-6, atol=2e-7)


def adversarial(width=1500):
    """Name -> logits [3, 2, width] in fp32; every target of ``adversarial_targets`` has a finite logit."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(3, 2, width, generator=generator)
    spike = torch.zeros(3, 2, width)
    spike[..., 7] = 1e4
    rare = torch.full((3, 2, width), float("-inf"))
    rare[..., ::50] = noise[..., ::50]
    half = noise.clone()
    half[..., width // 2 :] = float("-inf")
    return {
        "plus and minus 1e4": noise.sign() * 1e4,
        "around 1e4": 1e4 + noise.round(),
        "around -1e4": -1e4 + noise.round(),
        "all equal": torch.full((3, 2, width), 2.5),
        "one hot": spike,
        "mostly -inf": rare,
        "upper half of the vocabulary -inf": half,
        "lower half of the vocabulary -inf": half.flip(-1),
    }


def adversarial_targets(name, width=1500):
    base = torch.tensor([[0, 50], [100, 150], [650, -100]])
    return torch.where(base >= 0, base + width // 2, base) if name.startswith("lower half") else base
