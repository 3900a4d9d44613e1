"""Are the norms right on this device? Run before anything is timed; exit status 1 and the failed checks if not.

    python benchmarks/check_norm.py               # on a GPU: torch's fused kernels, and ours in Triton
    python benchmarks/check_norm.py --device cpu  # the single operators, to try this program

The norm of which tensor-parallel ranks hold parts is checked on one device, parts side by side, where Triton runs.

Shapes: N rows, H columns.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from functools import partial

import torch
from common import run_checks
from torch import Tensor

from megatron_remit.specs.rms import rms_norm

EPS = 1e-5
BOUNDS = {torch.float32: 1e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}
"""Of the largest error against the largest number: two roundings, and a half of one where a sum differs."""


def checks(device: torch.device) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the name and the function of each check."""
    for cast_first in (False, True):
        kind = "cast first" if cast_first else "weight in fp32"
        for dtype in BOUNDS:
            for rows, width in ((1, 1), (5, 48), (33, 64), (257, 128), (64, 2048), (7, 3000), (16, 8192)):
                yield (
                    f"{kind}, {dtype}, [{rows}, {width}], against float64",
                    partial(check_numbers, device, cast_first, dtype, rows, width),
                )
        yield f"{kind}, rows anywhere in memory", partial(check_strides, device, cast_first)
        yield f"{kind}, a row's bits depend on nothing else", partial(check_bits, device, cast_first)
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            continue
        for dtype in BOUNDS:
            for ranks, rows, width in ((2, 3, 2), (3, 5, 48), (4, 33, 512), (2, 2, 6000)):
                yield (
                    f"{kind}, {dtype}, [{rows}, {width}] in {ranks} parts, against float64",
                    partial(check_parts, device, cast_first, dtype, ranks, rows, width),
                )


def drawn(device: torch.device, dtype: torch.dtype, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and the gradient of the output."""
    generator = torch.Generator().manual_seed(shape[-1])
    x, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    weight = torch.rand(shape[-1], generator=generator) + 0.5
    return (10 * x).to(device, dtype), weight.to(device, dtype), gradient.to(device, dtype)


def computed(x: Tensor, weight: Tensor, gradient: Tensor, cast_first: bool) -> list[Tensor]:
    """The output, and the gradients of input and weight."""
    leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
    out = rms_norm(*leaves, EPS, cast_first)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


def in_parts(x: Tensor, weight: Tensor, gradient: Tensor, cast_first: bool, ranks: int) -> list[Tensor]:
    """The same from the kernels of the norm over ranks, whose exchange is done here."""
    kernels = importlib.import_module("megatron_remit.kernels.rms_parts_triton")
    parts = list(zip(*(of.chunk(ranks, -1) for of in (x, weight, gradient)), strict=True))
    squares, products = x.new_empty(2, ranks, *x.shape[:-1], 1, dtype=torch.float32)
    for (part, _, _), number in zip(parts, squares, strict=True):
        kernels.mean_square(part, number)
    square = squares.mean(0)
    outs = [kernels.scaled(part, square, of, EPS, cast_first) for part, of, _ in parts]
    for part, number in zip(parts, products, strict=True):
        kernels.mean_product(*part, number)
    gradients = [kernels.gradients(*part, square, products.mean(0), EPS) for part in parts]
    return [torch.cat(outs, -1), *(torch.cat(of, -1) for of in zip(*gradients, strict=True))]


def check_numbers(device: torch.device, cast_first: bool, dtype: torch.dtype, rows: int, width: int) -> None:
    case = drawn(device, dtype, rows, width)
    compare(computed(*case, cast_first), *case)


def check_parts(device: torch.device, cast_first: bool, dtype: torch.dtype, ranks: int, rows: int, width: int) -> None:
    case = drawn(device, dtype, rows, width)
    compare(in_parts(*case, cast_first, ranks), *case)


def compare(found: list[Tensor], x: Tensor, weight: Tensor, gradient: Tensor) -> None:
    """Output and gradients with those of the formula in float64."""
    leaves = [x.double().requires_grad_(), weight.double().requires_grad_()]
    truth = leaves[0] * torch.rsqrt(leaves[0].square().mean(-1, keepdim=True) + EPS) * leaves[1]
    expected = [truth.detach(), *torch.autograd.grad(truth, leaves, gradient.double())]
    for name, mine, right in zip(("output", "gradient", "weight's gradient"), found, expected, strict=True):
        # A row of one number has no gradient but rounding.
        size = max(right.abs().max().item(), gradient.abs().max().item() / 10)
        error = (mine.double() - right).abs().max().item() / size
        assert mine.dtype == x.dtype and error < BOUNDS[x.dtype], f"{name}: error {error:.2e} of the largest"


def check_strides(device: torch.device, cast_first: bool) -> None:
    """Queries and keys are cut out of one projection."""
    heads, _, gradient = drawn(device, torch.bfloat16, 6, 2, 5, 192)
    weight = drawn(device, torch.bfloat16, 64)[1]
    cuts = (lambda of: of[..., 64:128]), (lambda of: of.transpose(0, 1)[..., :64]), (lambda of: of[::2, :, 1:4, 128:])
    for cut, grad in ((take(heads), take(gradient)) for take in cuts):
        for found, right in zip(
            computed(cut, weight, grad, cast_first),
            computed(cut.contiguous(), weight, grad.contiguous(), cast_first),
            strict=True,
        ):
            torch.testing.assert_close(found, right, rtol=2.0**-7, atol=2.0**-7)


def check_bits(device: torch.device, cast_first: bool) -> None:
    x, weight, gradient = drawn(device, torch.bfloat16, 4096, 2048)
    first, second = (computed(x, weight, gradient, cast_first) for _ in range(2))
    alone = computed(x[77:78], weight, gradient[77:78], cast_first)
    for place in range(2):
        assert torch.equal(first[place], second[place]) and torch.equal(first[place][77:78], alone[place])


if __name__ == "__main__":
    run_checks(__doc__, checks)
