"""OLMoE for Megatron's GPTModel: norms in front of attention and experts, QK norm over the whole projection width.

    h = x + attention(norm(x));  y = h + experts(norm(h));  a final norm before the output layer  (HF OlmoeDecoderLayer)

Megatron's own QK norm is over each head alone, so only the attention differs from Megatron's layers.
"""

from typing import Any

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from megatron.training.models.gpt import GPTModelConfig

from megatron_remit.errors import UserError
from megatron_remit.specs.experts import expert_pattern, mixture, own_layers
from megatron_remit.specs.norm import CastFirstRMSNorm
from megatron_remit.specs.olmo2 import (
    WHOLE_WIDTH_NORM_NEEDS,
    WholeWidthNormSelfAttention,
    backend_of,
    check_whole_width_norm,
)


class OlmoeSelfAttention(WholeWidthNormSelfAttention):
    """Its norms are cast before their weights are applied (HF ``OlmoeRMSNorm``), unlike OLMo-2's."""

    norm_casts_first = True


def olmoe_layer_spec(config: GPTModelConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage and the final norm; pass it as ``--spec megatron_remit.specs.olmoe ..``.

    Raises :class:`UserError` for a setting that OLMoE does not have.
    """
    transformer = config.transformer
    check_whole_width_norm("OLMoE", transformer, WHOLE_WIDTH_NORM_NEEDS)
    if not all(expert_pattern(transformer)):
        raise UserError("OLMoE has experts in every layer: pass --num-experts, and drop --moe-layer-freq")
    backend, core_attention = backend_of("OLMoE", transformer.transformer_impl)
    fused = backend.fuse_layernorm_and_linear()
    norm: Any = backend.layer_norm() if fused else CastFirstRMSNorm
    attention = ModuleSpec(
        module=OlmoeSelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=backend.column_parallel_layer_norm_linear() if fused else backend.column_parallel_linear(),
            core_attention=core_attention,
            linear_proj=backend.row_parallel_linear(),
        ),
    )
    layer = ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=IdentityOp if fused else norm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=mixture(transformer, backend),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map={} if fused else {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"},
        ),
    )
    layers = own_layers(transformer, [layer] * transformer.num_layers, vp_stage)
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=norm)
