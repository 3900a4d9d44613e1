"""The RMSNorms are those of transformers to the last bit, and carry the mark that sequence parallelism needs."""

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from megatron_remit.specs.norm import CastFirstRMSNorm, LayerNorm, RMSNorm, ShardedNormWeight, rms_norm_pair_over_tp
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def gloo():
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def _config(**overrides):
    return TransformerConfig(num_layers=1, hidden_size=48, num_attention_heads=2, **overrides)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "truth"), [(RMSNorm, Olmo2RMSNorm), (CastFirstRMSNorm, LlamaRMSNorm)])
def test_forward_and_gradients_are_bit_equal_to_transformers(kind, truth, dtype):
    torch.manual_seed(0)
    ours, theirs = kind(_config(), 48, 1e-5).to(dtype), truth(48, 1e-5).to(dtype)
    weight = torch.rand(48).to(dtype) + 0.5
    x = torch.randn(7, 3, 48, dtype=dtype)
    results = []
    for norm in (ours, theirs):
        with torch.no_grad():
            norm.weight.copy_(weight)
        leaf = x.clone().requires_grad_()
        output = norm(leaf)
        (output.float() ** 3).sum().backward()
        results.append((output, leaf.grad, norm.weight.grad))
    for mine, expected in zip(*results, strict=True):
        assert mine.dtype == expected.dtype and torch.equal(mine, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("cast_first", "truth"), [(False, Olmo2RMSNorm), (True, LlamaRMSNorm)])
def test_query_and_key_norm_are_bit_equal_to_transformers(gloo, cast_first, truth, dtype):
    ours = [ShardedNormWeight(width, gloo) for width in (48, 16)]
    inputs = [torch.randn(7, 3, width).to(dtype) for width in (48, 16)]
    expected = []
    for norm, x in zip(ours, inputs, strict=True):
        weight = (torch.rand(x.size(-1)) + 0.5).to(dtype)
        norm.weight.data = weight
        theirs = truth(x.size(-1), 1e-5).to(dtype)
        theirs.weight.data = weight
        expected.append(theirs(x))
    found = rms_norm_pair_over_tp(*inputs, *ours, 1e-5, cast_first)
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))


def test_weight_is_marked_for_sequence_parallel_reduction():
    parallel = _config(tensor_model_parallel_size=2, sequence_parallel=True)
    for kind in (RMSNorm, CastFirstRMSNorm, LayerNorm):
        assert all(parameter.sequence_parallel for parameter in kind(parallel, 48, 1e-5).parameters())
        assert not any(parameter.sequence_parallel for parameter in kind(_config(), 48, 1e-5).parameters())


def _both_weights_are_taken_by_a_call(rank):
    norms = [ShardedNormWeight(8, torch.distributed.group.WORLD) for _ in range(2)]
    called = []
    for norm in norms:
        norm.register_forward_pre_hook(lambda module, inputs: called.append(module))
    rms_norm_pair_over_tp(torch.randn(3, 1, 8), torch.randn(3, 1, 8), *norms, 1e-6)
    assert called == norms


def test_the_weights_of_query_and_key_norm_are_taken_by_a_call():
    """Megatron's --overlap-param-gather waits for a parameter in the forward hook of the module that owns it."""
    run_ranks(1, _both_weights_are_taken_by_a_call)
