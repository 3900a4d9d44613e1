"""The local core attention against Megatron's own, and what it refuses."""

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_remit.errors import UserError
from megatron_remit.specs.attention import SDPACoreAttention


def _attention(mask_type=AttnMaskType.causal, **overrides):
    config = TransformerConfig(
        **({"num_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "attention_dropout": 0.0} | overrides)
    )
    return SDPACoreAttention(config, 1, mask_type, "self")


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
        ({"window_size": (4, 0)}, "window_size"),
        ({"softmax_type": "learnable"}, "softmax_type"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(overrides, named):
    with pytest.raises(UserError, match=named):
        _attention(**overrides)


def test_padding_masks_are_refused():
    x = torch.zeros(4, 1, 4, 8)
    with pytest.raises(UserError, match="padding"):
        _attention(AttnMaskType.padding)(x, x, x, None)
