"""The Triton kernels of the norm over ranks under Triton's interpreter: a row cut in parts has the whole row's norm.

Run by test_triton_interpreter.py in a process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

import os

import check_norm
import pytest
import torch
from check_norm import in_parts

from megatron_remit.kernels import rms_parts_triton as kernels
from megatron_remit.specs.rms import FusedPairOverRanks, PairOverRanks
from tests.ranks import run_ranks

assert os.environ["TRITON_INTERPRET"] == "1"
CPU = torch.device("cpu")


def drawn(*shape):
    return check_norm.drawn(CPU, torch.float32, *shape)


def test_output_and_gradients_are_those_of_the_whole_row():
    """In float64, for several dtypes, widths and numbers of ranks."""
    run = [(name, check) for name, check in check_norm.checks(CPU) if " parts, " in name]
    assert len(run) == 24
    for _, check in run:
        check()


@pytest.mark.parametrize("programs", [1, 3])
def test_the_gradients_are_the_same_in_a_few_programs(programs, monkeypatch):
    x, weight, grad = drawn(301, 1, 128)
    once = in_parts(x, weight, grad, False, 2)
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    output, of_input, of_weight = in_parts(x, weight, grad, False, 2)
    assert torch.equal(output, once[0]) and torch.equal(of_input, once[1])
    torch.testing.assert_close(of_weight, once[2], rtol=1e-5, atol=1e-5)


def test_rows_may_lie_anywhere_in_memory():
    x, weight, grad = drawn(3, 2, 5, 192)
    cuts = (lambda of: of[..., 64:128]), (lambda of: of.transpose(0, 1)[..., :64]), (lambda of: of[..., ::3])
    for cut in cuts:
        cutout = cut(x), weight[:64], cut(grad)
        alone = [of.contiguous() for of in cutout]
        for found, right in zip(in_parts(*cutout, False, 2), in_parts(*alone, False, 2), strict=True):
            assert torch.equal(found, right)


def test_no_rows_are_no_launch():
    x, weight, grad = drawn(0, 4, 8)
    output, of_input, of_weight = in_parts(x, weight, grad, False, 2)
    assert output.shape == of_input.shape == (0, 4, 8) and torch.equal(of_weight, torch.zeros(8))


def one_of_two_ranks(rank):
    torch.manual_seed(rank)
    leaves = [torch.randn(5, 2, 48), torch.randn(5, 2, 16), torch.rand(48) + 0.5, torch.rand(16) + 0.5]
    for cast_first in (False, True):
        both = []
        for norm in (FusedPairOverRanks, PairOverRanks):
            own = [leaf.clone().requires_grad_() for leaf in leaves]
            query, key = norm.apply(*own, 1e-5, cast_first, torch.distributed.group.WORLD)
            ((query**3).sum() + (key**2).sum()).backward()
            both.append([query, key, *(leaf.grad for leaf in own)])
        for mine, expected in zip(*both, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=2e-5)


def test_queries_and_keys_of_two_ranks_have_the_values_of_single_operators():
    run_ranks(2, one_of_two_ranks)
