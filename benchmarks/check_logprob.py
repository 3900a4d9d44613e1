"""Are the kernels right on this device? Run before they are timed; exit status 1 and the failed checks if not.

    python benchmarks/check_logprob.py            # on a GPU: the Triton kernels
    python benchmarks/check_logprob.py --device cpu   # the torch path, to try this program

The cases are those of tests/kernels, which a machine with nothing but torch, Triton and megatron-core can run, and in
addition the sizes that an interpreter cannot reach.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from common import run_checks

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for the tests' cases

from megatron_remit.kernels.chunked_head_logprob import chunked_head_nll
from megatron_remit.kernels.vocab_parallel_logprob import choose_implementation, load_implementation, vocab_parallel_nll
from tests.kernels.cases import (
    DTYPES,
    adversarial,
    adversarial_targets,
    assert_close,
    computed,
    draw,
    float64_truth,
)

VOCABULARIES = (32000, 100352, 128256, 131072, 151936)


def checks(device: torch.device) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the name and the function of each check."""
    implementation = choose_implementation("auto", device)
    for dtype in DTYPES:
        for vocabulary, padding in ((1, 0), (97, 3), (515, 5), (1281, 130), *((size, 0) for size in VOCABULARIES)):
            yield (
                f"{dtype}, {vocabulary} tokens and {padding} of padding, against float64",
                partial(check_shape, device, implementation, dtype, vocabulary, padding),
            )
        for name in adversarial():
            yield f"{dtype}, {name}", partial(check_adversarial, device, implementation, dtype, name)
    for parts in (2, 4):
        yield f"{parts} shards merged give one rank's numbers", partial(check_shards, device, implementation, parts)
    yield "rows anywhere in memory, grad_output expanded", partial(check_strides, device, implementation)
    yield "a row's bits depend neither on its neighbours nor on the run", partial(check_bits, device, implementation)
    yield "the chunked head gives the whole logits' NLL", partial(check_head, device, implementation)
    if device.type == "cuda":
        yield "more than 2^31 elements", partial(check_large, device, implementation)


def check_shape(device: torch.device, implementation: str, dtype: torch.dtype, vocabulary: int, padding: int) -> None:
    drawn = [part.to(device) for part in draw(3, 2, vocabulary + padding, vocabulary, dtype)]
    expected = float64_truth(*drawn, vocabulary)
    for in_place in (False, True):
        assert_close(computed(implementation, *drawn, vocabulary, in_place=in_place), expected, dtype)


def check_adversarial(device: torch.device, implementation: str, dtype: torch.dtype, name: str) -> None:
    width = 70000  # several segments
    logits = adversarial(width)[name].to(device, dtype)
    targets = adversarial_targets(name, width).to(device)
    grad_output = torch.linspace(-1, 2, 6, device=device).view(3, 2)
    found = computed(implementation, logits, targets, grad_output, width)
    assert_close(found, float64_truth(logits, targets, grad_output, width), dtype)


def check_shards(device: torch.device, implementation: str, parts: int) -> None:
    """What ``parts`` ranks would exchange and compute, one after the other on one device."""
    kernels, vocabulary = load_implementation(implementation), 131000
    logits, targets, grad_output = (part.to(device) for part in draw(5, 3, 131072, vocabulary))
    width = 131072 // parts
    cut = [
        (logits[..., first : first + width].contiguous(), first, min(width, vocabulary - first))
        for first in range(0, 131072, width)
    ]
    statistics = [kernels.row_statistics(part, targets.flatten(), first, columns) for part, first, columns in cut]
    nll, normalizer = kernels.merge(torch.cat(statistics), targets.flatten())
    expected = computed(implementation, logits, targets, grad_output, vocabulary)
    torch.testing.assert_close(nll.view(5, 3), expected[0], rtol=1e-6, atol=1e-6)
    for part, first, columns in cut:
        gradient = torch.empty_like(part)
        kernels.gradient(part, targets.flatten(), normalizer, grad_output, first, columns, gradient)
        torch.testing.assert_close(gradient, expected[1][..., first : first + width], rtol=1e-5, atol=1e-6)


def check_strides(device: torch.device, implementation: str) -> None:
    wide, targets, _ = (part.to(device) for part in draw(6, 4, 40000, 39000))
    for logits in (wide.transpose(0, 1).contiguous().transpose(0, 1), wide[::2, 1:3, :39001], wide[..., ::2]):
        shape, vocabulary = logits.shape[:2], logits.size(-1) - 10
        cut = targets[: shape[0], : shape[1]].clamp(max=vocabulary - 1)
        grad_output = torch.tensor(0.5, device=device).expand(shape)
        found = computed(implementation, logits, cut, grad_output, vocabulary)
        assert_close(found, float64_truth(logits, cut, grad_output, vocabulary), torch.float32)


def check_bits(device: torch.device, implementation: str) -> None:
    drawn = [part.to(device) for part in draw(64, 2, 100352, 100352, torch.bfloat16)]
    first, second = (computed(implementation, *drawn, 100352) for _ in range(2))
    alone = computed(implementation, *(part[5:6, 1:].contiguous() for part in drawn), 100352)
    for one, two, row in zip(first, second, alone, strict=True):
        assert torch.equal(one, two) and torch.equal(one[5:6, 1:], row)


def check_head(device: torch.device, implementation: str) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (
        torch.randn(*shape, generator=generator).to(device, torch.bfloat16) for shape in ((300, 2, 128), (32000, 128))
    )
    targets = torch.randint(0, 32000, (300, 2), generator=generator).to(device)
    whole = vocab_parallel_nll(torch.matmul(hidden, weight.t()), targets, 32000, implementation=implementation)
    chunked = chunked_head_nll(hidden, weight, targets, 32000, implementation=implementation, chunk_bytes=2**24)
    # A matrix product of fewer rows may add in another order, which one rounding of a bf16 logit shows.
    torch.testing.assert_close(chunked, whole, rtol=2.0**-8, atol=0.2)
    print(f"        (the same bits for {chunked.eq(whole).float().mean().item():.1%} of the tokens)")


def check_large(device: torch.device, implementation: str) -> None:
    """[16400, 1, 131072]: the last rows lie beyond 2^31 elements and have the same bits as when computed alone."""
    logits = torch.randn(16400, 1, 131072, device=device, dtype=torch.bfloat16)
    targets = torch.randint(0, 131072, (16400, 1), device=device)
    grad_output = torch.ones(16400, 1, device=device)
    tail = [part[-8:].clone() for part in (logits, targets, grad_output)]
    alone = computed(implementation, *tail, 131072)
    leaf = logits.requires_grad_()
    nll = vocab_parallel_nll(leaf, targets, 131072, implementation=implementation, in_place=True)
    gradient = torch.autograd.grad(nll, leaf, grad_output)[0]
    assert torch.equal(nll[-8:], alone[0]) and torch.equal(gradient[-8:], alone[1])


if __name__ == "__main__":
    run_checks(__doc__, checks)
