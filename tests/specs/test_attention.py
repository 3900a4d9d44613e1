"""The local core attention against plain softmax attention, over context-parallel ranks, and what it refuses."""

from types import SimpleNamespace

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_remit import cpu
from megatron_remit.errors import UserError
from megatron_remit.specs import window
from megatron_remit.specs.attention import SDPACoreAttention
from tests.ranks import run_ranks


def _attention(layer=1, mask_type=AttnMaskType.causal, **overrides):
    config = TransformerConfig(
        **({"num_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "attention_dropout": 0.0} | overrides)
    )
    return SDPACoreAttention(config, layer, mask_type, "self")


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_is_softmax_attention_over_the_past(groups):
    torch.manual_seed(0)
    query, key, value = (torch.randn(9, 3, heads, 8, dtype=torch.float64) for heads in (4, groups, groups))
    found = _attention()(query, key, value, None)
    wide_key, wide_value = (x.repeat_interleave(4 // groups, dim=2) for x in (key, value))
    scores = torch.einsum("sbnd,tbnd->bnst", query, wide_key) / 8**0.5
    scores.masked_fill_(torch.ones(9, 9).triu(1).bool(), float("-inf"))
    expected = torch.einsum("bnst,tbnd->sbnd", scores.softmax(-1), wide_value).flatten(2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("size", [1, 4, 8, 20])
def test_a_window_hides_what_lies_before_it(monkeypatch, size, documents):
    """In a model with windows of ``size``, the query included, and a layer without one. A block has 3 queries."""
    monkeypatch.setattr(window, "BLOCK", 3)
    torch.manual_seed(0)
    query, key, value = (torch.randn(9, 2, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    hidden = torch.ones(2, 1, 9, 9).triu(1).bool()
    if documents:
        hidden[1, :, 5:, :5] = True
    given = hidden if documents else None
    band = hidden | torch.ones(9, 9).tril(-size).bool()
    config = {"window_size": (size - 1, 0), "window_attn_skip_freq": [1, 0]}
    for layer, expected in ((1, band), (2, hidden)):
        found = _attention(layer, **config)(query, key, value, given)
        torch.testing.assert_close(found, _attention()(query, key, value, expected))


def test_memory_of_a_window_grows_with_the_window():
    """No block of queries is given more keys than its window reaches."""
    seen = []

    def attend(query, key, value, attn_mask):
        seen.append((query.size(2), key.size(2)))
        return query

    x = torch.zeros(1, 1, 4096, 2)
    window.attend_in_windows(attend, x, x, x, 100)
    assert sum(queries for queries, _ in seen) == 4096
    assert max(keys for _, keys in seen) == 199


def test_a_mask_tensor_separates_documents():
    torch.manual_seed(0)
    query, key, value = (torch.randn(6, 1, 4, 8, dtype=torch.float64) for _ in range(3))
    hidden = torch.ones(6, 6).triu(1).bool()
    hidden[3:, :3] = True
    found = _attention()(query, key, value, hidden.expand(1, 1, 6, 6))
    apart = [_attention()(query[part], key[part], value[part], None) for part in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(found, torch.cat(apart))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"window_size": (4, 2)}, "window-size 4,2"),
        ({"softmax_type": "learnable"}, "softmax_type"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(overrides, named):
    with pytest.raises(UserError, match=named):
        _attention(**overrides)


def _attention_over_three_ranks(rank):
    cpu.install()
    group = torch.distributed.group.WORLD
    chunks = torch.arange(24).chunk(6)
    here = torch.cat([chunks[rank], chunks[5 - rank]])
    hidden = torch.ones(2, 1, 24, 24).triu(1).bool()
    hidden[0, :, 5:, :5] = hidden[1, :, 13:, :13] = True
    causal, no_mask = AttnMaskType.causal, AttnMaskType.no_mask
    cases = [(causal, None, None), (no_mask, None, None), (causal, hidden, None)]
    cases += [(causal, mask, (5, 0)) for mask in (None, hidden)]
    for mask_type, mask, size in cases:
        torch.manual_seed(0)
        # Grouped queries, values narrower than keys.
        whole = [torch.randn(24, 2, heads, width, dtype=torch.float64) for heads, width in ((4, 8), (2, 8), (2, 6))]
        direction = torch.randn(24, 2, 24, dtype=torch.float64)
        results = []
        for parts, cp_group in ((slice(None), None), (here, group)):
            config = TransformerConfig(
                num_layers=1,
                hidden_size=32,
                num_attention_heads=4,
                attention_dropout=0.0,
                context_parallel_size=1 if cp_group is None else 3,
                window_size=size,
            )
            attention = SDPACoreAttention(config, 1, mask_type, "self", pg_collection=SimpleNamespace(cp=cp_group))
            leaves = [x[parts].clone().requires_grad_() for x in whole]
            output = attention(*leaves, None if mask is None else mask[:, :, parts])
            (output * direction[parts]).sum().backward()
            results.append([output, *(leaf.grad for leaf in leaves)])
        for found, expected in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(found, expected[here])


def test_context_parallel_ranks_compute_their_rows_and_gradients():
    """Megatron's zigzag order: rank r of 3 holds chunks r and 5 - r of 6."""
    run_ranks(3, _attention_over_three_ranks)


def test_padding_masks_are_refused():
    x = torch.zeros(4, 1, 4, 8)
    with pytest.raises(UserError, match="padding"):
        _attention(mask_type=AttnMaskType.padding)(x, x, x, None)
    with pytest.raises(UserError, match="window-size"):
        _attention(mask_type=AttnMaskType.no_mask, window_size=(1, 0))(x, x, x, None)
