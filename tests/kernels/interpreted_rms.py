"""The Triton kernel of the norm that is cast before the weight, under Triton's interpreter.

Run by test_triton_interpreter.py in a process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

import os

import pytest
import torch

from megatron_remit.kernels.rms_triton import cast_first, constants

assert os.environ["TRITON_INTERPRET"] == "1"
EPS = 1e-5
DTYPES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""The relative error: the interpreter truncates to bf16 where a GPU rounds, here twice."""


def plain(x, weight):
    """In float64 but for the cast in the middle."""
    wide = x.double()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return (wide * scale).to(x.dtype).double() * weight.double(), scale


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 48), (33, 128), (3, 2048), (2, 3000)])
def test_output_and_scale_are_those_of_the_formula(rows, width, dtype):
    torch.manual_seed(width)
    x, weight = (10 * torch.randn(rows, width)).to(dtype), (torch.rand(width) + 0.5).to(dtype)
    out, scale = cast_first(x, weight, EPS)
    expected, expected_scale = plain(x, weight)
    assert out.dtype == dtype and scale.dtype == torch.float32 and scale.shape == (rows, 1)
    torch.testing.assert_close(out.double(), expected, rtol=DTYPES[dtype], atol=1e-7)
    torch.testing.assert_close(scale.double(), expected_scale, rtol=2e-6, atol=0)


def test_a_row_is_the_same_among_others_and_anywhere_in_memory():
    torch.manual_seed(0)
    heads, weight = torch.randn(3, 2, 5, 3 * 64), torch.rand(64) + 0.5
    assert constants(64)[0]["ROWS"] > 1
    keys = heads[..., 64:128]  # as Megatron cuts them out of one projection
    assert not keys.is_contiguous()
    out, scale = cast_first(keys, weight, EPS)
    assert out.is_contiguous() and out.shape == keys.shape and scale.shape == (3, 2, 5, 1)
    for found, (s, b, h) in ((out[s, b, h], (s, b, h)) for s in range(3) for b in range(2) for h in range(5)):
        assert torch.equal(found, cast_first(keys[s, b, h][None], weight, EPS)[0][0])
    turned = torch.randn(64, 7).T
    assert torch.equal(cast_first(turned, weight, EPS)[0], cast_first(turned.contiguous(), weight, EPS)[0])


def test_no_rows_are_no_launch():
    out, scale = cast_first(torch.empty(0, 4, 8), torch.ones(8), EPS)
    assert out.shape == (0, 4, 8) and scale.shape == (0, 4, 1)
