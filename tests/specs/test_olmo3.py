"""What OLMo-3's layers lack is refused by its flag. (What they compute: test_family_parallel and test_rope.)"""

import pytest
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training.models.gpt import GPTModelConfig

from megatron_remit import cpu
from megatron_remit.errors import UserError
from megatron_remit.specs.olmo3 import olmo3_layer_spec

cpu.install()


def model(**fields):
    fields = {
        "num_layers": 4,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "normalization": "RMSNorm",
        "add_bias_linear": False,
        "transformer_impl": "local",
        "use_cpu_initialization": True,
        "window_size": (7, 0),
        "window_attn_skip_freq": [1, 1, 1, 0],
    } | fields
    return GPTModelConfig(transformer=TransformerConfig(**fields), vocab_size=64, position_embedding_type="yarn")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"qk_layernorm": True}, "OLMo-3 needs qk_layernorm = False.*--qk-layernorm"),
        ({"normalization": "LayerNorm"}, "--normalization RMSNorm"),
        (
            {"transformer_impl": "transformer_engine", "context_parallel_size": 2, "cp_comm_type": "p2p"},
            "--cp-comm-type a2a or all_gather",
        ),
    ],
)
def test_what_the_layers_lack_is_refused_by_its_flag(fields, named):
    with pytest.raises(UserError, match=named):
        olmo3_layer_spec(model(**fields))
