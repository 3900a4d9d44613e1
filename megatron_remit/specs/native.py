"""The layers of Megatron's GPTModel in plain torch: those of ``--transformer-impl local`` without a ``--spec``.

They serve Llama, Qwen3 (per-head QK norm; dense or with experts), SmolLM3 (layers without RoPE), Youtu-LLM (dense
multi-latent attention) and every model made of the same parts. Unlike Megatron's own local layers
(``get_gpt_layer_local_spec``) they support sequence parallelism and multi-latent attention, and their attention holds
no [S, S] matrix. Checkpoints carry the names of the Transformer Engine layers
(``get_gpt_layer_with_transformer_engine_spec``), so that one checkpoint serves both.
"""

import argparse
import importlib
from functools import partial

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnBackend, AttnMaskType
from megatron.core.transformer.heterogeneous.heterogeneous_config import HeterogeneousTransformerConfig
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.multi_latent_attention import MLASelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import L2Norm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from megatron.training import print_rank_0
from megatron.training.argument_utils import gpt_config_from_args
from megatron.training.models.gpt import GPTModelConfig, default_layer_spec

from megatron_remit.errors import UserError
from megatron_remit.one_line import in_one_line
from megatron_remit.specs.attention import SDPACoreAttention
from megatron_remit.specs.experts import expert_pattern, megatron_layer_spec, mixture, own_layers
from megatron_remit.specs.latent import LatentSelfAttention, NormedColumnParallelLinear
from megatron_remit.specs.norm import CastFirstRMSNorm, LayerNorm

# Features that Megatron's own local layers have and these lack: (config field, the value without it, the flag).
_LEFT_TO_MEGATRON = (
    ("mtp_num_layers", None, "--mtp-num-layers"),
    ("experimental_attention_variant", None, "--experimental-attention-variant"),
    ("use_kitchen", False, "--use-kitchen"),
    ("attention_dropout", 0.0, "--attention-dropout above 0"),
    ("apply_query_key_layer_scaling", False, "--apply-query-key-layer-scaling"),
    ("softmax_type", "vanilla", "--softmax-type"),
)
_NORMS = {"RMSNorm": CastFirstRMSNorm, "LayerNorm": LayerNorm}


def gpt_config(args: argparse.Namespace) -> GPTModelConfig:
    """Megatron's model config of ``args``, for policy and reference alike, with these layers where they apply.

    Raises UserError for what Megatron's config refuses, and for a ``--spec`` that is not there.
    """
    if args.spec is not None:
        _check_spec(args.spec)
    with in_one_line(args):
        config = gpt_config_from_args(args)
    # Megatron takes the switch of RoPE scaling from the arguments, but not the factor.
    config.rope_scaling_factor = args.rope_scaling_factor
    if args.multi_latent_attention:
        _set_yarn_of_latent_attention(config.transformer, args)
    if config.transformer_layer_spec is None and config.transformer.transformer_impl == "local":
        config.transformer_layer_spec = native_layer_spec
    elif config.transformer_layer_spec is None and config.transformer.num_moe_experts is not None:
        config.transformer_layer_spec = megatron_layer_spec
    return config


def _check_spec(spec: list[str]) -> None:
    """Megatron takes its own layers without a word where the module of ``spec`` cannot be imported."""
    found = f"--spec {' '.join(spec)}"
    if len(spec) != 2:
        raise UserError(f"{found}: expected two words, a module and the name of a function in it")
    try:
        module = importlib.import_module(spec[0])
    except ImportError as error:
        raise UserError(
            f"{found}: the module cannot be imported ({error}); install it, or add it to PYTHONPATH"
        ) from error
    if not hasattr(module, spec[1]):
        raise UserError(f"{found}: the module has no {spec[1]!r}; give the name of a function that returns layers")


def _set_yarn_of_latent_attention(transformer: TransformerConfig, args: argparse.Namespace) -> None:
    """Megatron gives these arguments to other attention only, and has no others for latent attention."""
    for field in ("original_max_position_embeddings", "beta_fast", "beta_slow"):
        value = getattr(args, f"yarn_{field}")
        if value is not None:
            setattr(transformer, field, value)


def native_layer_spec(config: GPTModelConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules | ModuleSpec:
    """The layers of this pipeline stage and the final norm (a ``--spec`` function of Megatron's model builder).

    A model with a feature that only Megatron's own layers have (:func:`left_to_megatron`) gets those.

    Raises:
        UserError: such a feature together with one that only these layers have, or a setting that neither has.
    """
    transformer = config.transformer
    feature = left_to_megatron(config)
    if feature is not None:
        _check_megatron_can(transformer, feature)
        print_rank_0(f"> {feature}: layers are Megatron's own local ones")
        return default_layer_spec(config, vp_stage)
    _check(transformer)
    pattern = expert_pattern(transformer)
    kinds = {has_experts: _layer(transformer, has_experts) for has_experts in set(pattern)}
    layers = [kinds[has_experts] for has_experts in pattern]
    return TransformerBlockSubmodules(
        layer_specs=own_layers(transformer, layers, vp_stage), layer_norm=_NORMS[transformer.normalization]
    )


def _layer(transformer: TransformerConfig, has_experts: bool) -> ModuleSpec:
    norm, latent = _NORMS[transformer.normalization], transformer.multi_latent_attention
    dense_parts = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    dense = partial(MLP.as_mlp_submodule, submodules=dense_parts)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=_latent_attention(transformer) if latent else _attention(transformer, norm),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=mixture(transformer, LocalSpecProvider()) if has_experts else dense,
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=_names(latent, has_experts),
        ),
    )


def left_to_megatron(config: GPTModelConfig) -> str | None:
    """The first feature of the model that only Megatron's own layers have, as its flag; None if there is none."""
    transformer = config.transformer
    for field, without, flag in _LEFT_TO_MEGATRON:
        if getattr(transformer, field, without) != without:
            return flag
    if isinstance(transformer, HeterogeneousTransformerConfig):
        return "--heterogeneous-layers-config-path"
    if config.attention_backend == AttnBackend.local:
        return "--attention-backend local"
    return None


def _check_megatron_can(transformer: TransformerConfig, feature: str) -> None:
    for field, without, flag in (
        ("sequence_parallel", False, "--sequence-parallel"),
        ("context_parallel_size", 1, "--context-parallel-size above 1"),
        ("multi_latent_attention", False, "--multi-latent-attention"),
    ):
        if getattr(transformer, field) != without:
            raise UserError(
                f"{flag} with {feature}: without Transformer Engine one layer cannot do both; drop one of the two or "
                "use --transformer-impl transformer_engine"
            )


def _check(transformer: TransformerConfig) -> None:
    if transformer.normalization not in _NORMS:
        raise UserError(f"--normalization {transformer.normalization}: the local layers have {' and '.join(_NORMS)}")
    if transformer.layernorm_zero_centered_gamma:
        raise UserError("--apply-layernorm-1p needs Transformer Engine's norms: drop it or install Transformer Engine")
    if not transformer.multi_latent_attention:
        return
    if transformer.normalization != "RMSNorm" or transformer.qk_l2_norm:
        raise UserError(
            "--multi-latent-attention needs --normalization RMSNorm, and no --qk-l2-norm, without Transformer Engine"
        )
    if transformer.qk_layernorm and transformer.q_lora_rank is None:
        raise UserError(
            "--multi-latent-attention with --qk-layernorm needs --q-lora-rank without Transformer Engine: "
            "there is no compressed query to normalise"
        )


def _attention(transformer: TransformerConfig, norm: type) -> ModuleSpec:
    """Multi-head or grouped-query attention; the QK norm is over each head alone.

    The norm sees this rank's heads only, so Megatron sums the gradients of q_layernorm and k_layernorm over TP.
    """
    head_norm = L2Norm if transformer.qk_l2_norm else norm if transformer.qk_layernorm else IdentityOp
    return ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=SDPACoreAttention,
            linear_proj=RowParallelLinear,
            q_layernorm=head_norm,
            k_layernorm=head_norm,
        ),
    )


def _latent_attention(transformer: TransformerConfig) -> ModuleSpec:
    """Multi-latent attention; ``qk_layernorm`` normalises the compressed query and key/value."""
    up_projection = NormedColumnParallelLinear if transformer.qk_layernorm else ColumnParallelLinear
    return ModuleSpec(
        module=LatentSelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=MLASelfAttentionSubmodules(
            linear_q_proj=ColumnParallelLinear,
            linear_q_down_proj=ColumnParallelLinear,
            linear_q_up_proj=up_projection,
            linear_kv_down_proj=ColumnParallelLinear,
            linear_kv_up_proj=up_projection,
            core_attention=SDPACoreAttention,
            linear_proj=RowParallelLinear,
            q_layernorm=IdentityOp,
            kv_layernorm=IdentityOp,
        ),
    )


def _names(latent: bool, has_experts: bool) -> dict[str, str]:
    """Checkpoint names of the norms that Transformer Engine fuses into the projection that follows them.

    In multi-latent attention two projections follow the input norm, and a router follows the norm before experts, so
    these stay modules of their own there too.
    """
    names = {} if has_experts else {"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}
    return names if latent else {"input_layernorm.": "self_attention.linear_qkv.layer_norm_", **names}
