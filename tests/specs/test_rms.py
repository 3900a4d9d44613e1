"""RMSNorm over tensor-parallel ranks and from torch's fused kernels is the plain one, and keeps no fp32 copies."""

import functools

import pytest
import torch
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch._decomp import decomposition_table

from megatron_remit.specs.rms import FusedCastFirst, rms_norm, rms_norm_pair
from tests.ranks import run_ranks

EPS = 1e-5


def by_autograd(query, key, weights, cast_first, group):
    """The same norm from Megatron's communication and autograd's own backward pass."""
    wide = [query.float(), key.float()]
    local = torch.stack([x.square().mean(-1, keepdim=True) for x in wide]) / group.size()
    means = copy_to_tensor_model_parallel_region(reduce_from_tensor_model_parallel_region(local, group), group)
    out = []
    for x, mean, weight in zip(wide, means.unbind(0), weights, strict=True):
        normed = x * torch.rsqrt(mean + EPS)
        out.append(normed.to(query.dtype) * weight if cast_first else (normed * weight.float()).to(query.dtype))
    return out


def over_two_ranks(rank):
    group = torch.distributed.group.WORLD
    for dtype in (torch.float32, torch.bfloat16):
        for cast_first in (False, True):
            torch.manual_seed(rank)
            leaves = [torch.randn(5, 2, 48), torch.randn(5, 2, 16), torch.rand(48) + 0.5, torch.rand(16) + 0.5]
            both = []
            for norm in (lambda q, k, w, c, g: rms_norm_pair(q, k, w, EPS, c, g), by_autograd):
                own = [leaf.to(dtype).requires_grad_() for leaf in leaves]
                saved = []
                with torch.autograd.graph.saved_tensors_hooks(lambda t, to=saved: to.append(t) or t, lambda t: t):
                    query, key = norm(own[0], own[1], (own[2], own[3]), cast_first, group)
                ((query.float() ** 3).sum() + (key.float() ** 3).sum()).backward()
                both.append([query, key, *(leaf.grad for leaf in own)])
                if norm is not by_autograd:
                    wide = [t for t in saved if t.dtype == torch.float32 and t.size(-1) > 1]
                    assert dtype == torch.float32 or not wide
            for mine, expected in zip(*both, strict=True):
                assert mine.dtype == dtype and torch.equal(mine, expected), (dtype, cast_first)


def test_a_norm_over_two_ranks_has_autograds_bits_and_keeps_no_fp32_copies():
    run_ranks(2, over_two_ranks)


@pytest.fixture
def fused_backward_without_cuda():
    """torch's own definition of the kernel that has no CPU version."""
    library = torch.library.Library("aten", "IMPL")
    decomposed = decomposition_table[torch.ops.aten._fused_rms_norm_backward.default]
    library.impl("_fused_rms_norm_backward", decomposed, "CPU")
    yield
    library._destroy()


def test_the_fused_norm_that_casts_first_is_the_plain_one(fused_backward_without_cuda):
    torch.manual_seed(0)
    x, weight, grad = torch.randn(7, 3, 48), torch.rand(48) + 0.5, torch.randn(7, 3, 48)
    both = []
    for norm in (FusedCastFirst.apply, functools.partial(rms_norm, cast_first=True)):
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        out = norm(*leaves, EPS)
        out.backward(grad)
        both.append([out, *(leaf.grad for leaf in leaves)])
    for mine, expected in zip(*both, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


def test_the_fused_norm_that_casts_first_rounds_its_output_as_transformers_does():
    torch.manual_seed(0)
    x, weight = torch.randn(64, 48).bfloat16(), (torch.rand(48) + 0.5).bfloat16()
    with torch.no_grad():
        assert torch.equal(FusedCastFirst.apply(x, weight, EPS), rms_norm(x, weight, EPS, cast_first=True))
