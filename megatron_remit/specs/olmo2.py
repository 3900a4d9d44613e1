"""OLMo-2 for Megatron's GPTModel: norms on the outputs of attention and MLP, QK norm over the whole projection width.

    h = x + norm(attention(x));  y = h + norm(mlp(h));  a final norm before the output layer     (HF Olmo2DecoderLayer)

The output norms sit inside the attention and MLP modules. So Megatron's TransformerLayer is used as it is, with its
recomputation, offloading and MLP chunking.

Shapes: S sequence, B micro-batch, H hidden, N query heads on this rank, G key/value heads on this rank, D head width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from megatron.training.models.gpt import GPTModelConfig

from megatron_remit.errors import UserError
from megatron_remit.specs.attention import SDPACoreAttention
from megatron_remit.specs.norm import RMSNorm, ShardedNormWeight, rms_norm_pair_over_tp

# (field of the transformer config, the value needed with a norm of whole width, what to do)
WHOLE_WIDTH_NORM_NEEDS = (
    ("normalization", "RMSNorm", "pass --normalization RMSNorm"),
    ("add_bias_linear", False, "pass --disable-bias-linear"),
    (
        "qk_layernorm",
        False,
        "drop --qk-layernorm: it normalises each head alone, the family's own norm is always there",
    ),
    ("multi_latent_attention", False, "drop --multi-latent-attention"),
    ("layernorm_zero_centered_gamma", False, "drop --apply-layernorm-1p"),
    ("fused_single_qkv_rope", False, "drop --fused-single-qkv-rope: the QK norm stands between projection and RoPE"),
    ("attention_output_gate", False, "drop --attention-output-gate"),
)
_NEEDED = (*WHOLE_WIDTH_NORM_NEEDS, ("num_moe_experts", None, "drop --num-experts"))


class WholeWidthNormSelfAttention(SelfAttention):
    """Self-attention whose query and key are normalised over the whole width."""

    norm_casts_first = False
    """Whether this norm is cast before its weight is applied."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        width = self.hidden_size_per_attention_head
        self.q_norm = ShardedNormWeight(self.num_attention_heads_per_partition * width, self.pg_collection.tp)
        self.k_norm = ShardedNormWeight(self.num_query_groups_per_partition * width, self.pg_collection.tp)

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query [S, B, N, D], key and value [S, B, G, D], query and key normalised before RoPE."""
        query_SBND, key_SBGD, value_SBGD = super().get_query_key_value_tensors(*args, **kwargs)
        query, key = rms_norm_pair_over_tp(
            query_SBND.flatten(2),
            key_SBGD.flatten(2),
            self.q_norm,
            self.k_norm,
            self.config.layernorm_epsilon,
            self.norm_casts_first,
        )
        return query.view(query_SBND.shape), key.view(key_SBGD.shape), value_SBGD


class Olmo2SelfAttention(WholeWidthNormSelfAttention):
    """The same with a normalised output."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.post_norm = RMSNorm(self.config, self.config.hidden_size, self.config.layernorm_epsilon)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """The normalised output [S, B, H] (S / TP under sequence parallelism) and no bias."""
        output_SBH, _ = super().forward(*args, **kwargs)
        return self.post_norm(output_SBH), None


class Olmo2MLP(MLP):
    """SwiGLU MLP whose output is normalised."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.post_norm = RMSNorm(self.config, self.config.hidden_size, self.config.layernorm_epsilon)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """The normalised output [S, B, H] (S / TP under sequence parallelism) and no bias."""
        output_SBH, _ = super().forward(hidden_states, *args, **kwargs)
        return self.post_norm(output_SBH), None


def olmo2_layer_spec(config: GPTModelConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage and the final norm; pass it as ``--spec megatron_remit.specs.olmo2 ..``.

    Raises :class:`UserError` for a setting that OLMo-2 does not have.
    """
    return post_norm_block(config, vp_stage, "OLMo-2", Olmo2SelfAttention)


def post_norm_block(
    config: GPTModelConfig, vp_stage: int | None, name: str, attention_module: type, **attention_params: Any
) -> TransformerBlockSubmodules:
    """The block of OLMo-2 and its relatives: ``attention_module`` is what they differ in, ``name`` is for messages.

    A block spec and not a layer spec, since Megatron gives a layer spec its own final norm, which has no sequence
    parallelism without Transformer Engine. Raises :class:`UserError` for a setting that none of them has.
    """
    transformer = config.transformer
    check_whole_width_norm(name, transformer, _NEEDED)
    backend, core_attention = backend_of(name, transformer.transformer_impl)
    attention = ModuleSpec(
        module=attention_module,
        params={"attn_mask_type": AttnMaskType.causal, **attention_params},
        submodules=SelfAttentionSubmodules(
            linear_qkv=backend.column_parallel_linear(),
            core_attention=core_attention,
            linear_proj=backend.row_parallel_linear(),
        ),
    )
    mlp_parts = MLPSubmodules(linear_fc1=backend.column_parallel_linear(), linear_fc2=backend.row_parallel_linear())
    layer = ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            mlp=partial(Olmo2MLP.as_mlp_submodule, submodules=mlp_parts),
            mlp_bda=get_bias_dropout_add,
        ),
    )
    layer_count = get_num_layers_to_build(transformer, vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layer_count, layer_norm=RMSNorm)


def check_whole_width_norm(family: str, transformer: TransformerConfig, needed: Sequence[tuple[str, Any, str]]) -> None:
    """Raise UserError for a setting that the family does not have, or that its norm of query and key cannot work with.

    ``needed``: (field of the config, the value that the family needs, what to do).
    """
    for field, value, remedy in needed:
        found = getattr(transformer, field, value)
        if found != value:
            raise UserError(f"{family} needs {field} = {value}, found {found}: {remedy}")
    groups, tp_size = transformer.num_query_groups, transformer.tensor_model_parallel_size
    if groups % tp_size:
        raise UserError(
            f"{family} needs its {groups} key/value heads to divide over --tensor-model-parallel-size, found {tp_size}"
        )


def backend_of(family: str, transformer_impl: str) -> tuple[Any, type]:
    """The provider of linear layers and the core attention of ``--transformer-impl``; UserError if there is none."""
    if transformer_impl == "local":
        return LocalSpecProvider(), SDPACoreAttention
    if transformer_impl != "transformer_engine":
        raise UserError(f"{family} runs with --transformer-impl local or transformer_engine, not {transformer_impl}")
    if not HAVE_TE:
        raise UserError("Transformer Engine is not installed: install it or pass --transformer-impl local")
    provider = TESpecProvider()
    return provider, provider.core_attention()
