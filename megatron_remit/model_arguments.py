"""What a model is, in one table: every Megatron argument that changes what the tensors of a checkpoint compute.

A row says what the value is in a model without the feature, how the value gets from a checkpoint into a run, and who
looks at it. All else that needs a list of such arguments is derived from here: ``--use-checkpoint-args`` (patches), the
reference's own arguments and its fingerprint (reference/), what an import stores and an export compares (convert/).

The table follows Megatron 0.19.2: ``load_args_from_checkpoint``, ``core_transformer_config_from_args`` and
``gpt_config_from_args``. It leaves out what a run chooses anew (precision, kernels, dropout, the parallel layout), how
experts are balanced in training, and the layers of Mamba and hybrid models, which this program does not build.
"""

import argparse
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class Taken(enum.Enum):
    """What Megatron's ``load_args_from_checkpoint`` does with an argument that the checkpoint states.

    A value of None counts as not stated: the run's own value stays.
    """

    ALWAYS = "takes it"
    IF_UNSET = "takes it where the run's value is None"
    LEFT_OUT = "leaves it out, so that this program takes it"


@dataclass(frozen=True)
class ModelArgument:
    """One argument, by the name that it has in the parsed arguments and in a checkpoint."""

    name: str
    neutral: Any
    """Its value in a model without the feature, which is the default of Megatron's parser."""
    taken: Taken
    fingerprint: bool = True
    """Whether it belongs to the fingerprint of a reference. False: the names and shapes of the tensors show it, or it
    does not change what they compute."""
    export: bool = True
    """Whether an export refuses a checkpoint that differs in it from the Hugging Face template."""
    part_of: str | None = None
    """The argument that switches the feature on; where that one is neutral, this one has no effect."""


_ALWAYS, _IF_UNSET, _LEFT_OUT = Taken
_LATENT, _EXPERTS, _VARIANT, _MUP = "multi_latent_attention", "num_experts", "experimental_attention_variant", "use_mup"

_SIZES = (
    ModelArgument("num_layers", None, _IF_UNSET),
    ModelArgument("hidden_size", None, _IF_UNSET),
    ModelArgument("ffn_hidden_size", None, _IF_UNSET),
    ModelArgument("num_attention_heads", None, _IF_UNSET),
    ModelArgument("kv_channels", None, _IF_UNSET),
    ModelArgument("group_query_attention", False, _ALWAYS, fingerprint=False, export=False),
    ModelArgument("num_query_groups", 1, _ALWAYS),
    # A run may be longer or shorter than the model's first one; RoPE does not know the length.
    ModelArgument("max_position_embeddings", None, _IF_UNSET, fingerprint=False, export=False),
    # The rows of the embedding: this number depends on the tensor-parallel size, the next one does not.
    ModelArgument("padded_vocab_size", None, _IF_UNSET, fingerprint=False, export=False),
    ModelArgument("remit_vocab_size", None, _LEFT_OUT, export=False),
    ModelArgument("untie_embeddings_and_output_weights", False, _ALWAYS),
)
_LAYERS = (
    # Layers of a spec function are often just another implementation of the same model.
    ModelArgument("spec", None, _ALWAYS, export=False),
    ModelArgument("heterogeneous_layers_config_path", None, _ALWAYS, fingerprint=False, export=False),
    ModelArgument("heterogeneous_layers_config_encoded_json", None, _ALWAYS),
    ModelArgument("normalization", "LayerNorm", _ALWAYS),
    ModelArgument("layernorm_epsilon", 1e-5, _LEFT_OUT),
    ModelArgument("layernorm_zero_centered_gamma", False, _LEFT_OUT),
    ModelArgument("add_bias_linear", True, _ALWAYS, fingerprint=False),
    ModelArgument("swiglu", False, _ALWAYS),
    ModelArgument("squared_relu", False, _ALWAYS),
    ModelArgument("quick_geglu", False, _LEFT_OUT),
    ModelArgument("glu_linear_offset", 0.0, _LEFT_OUT),
    ModelArgument("activation_func_clamp_value", None, _LEFT_OUT),
    # The layers that predict further tokens have no part in the logits of the next one.
    ModelArgument("mtp_num_layers", None, _ALWAYS, fingerprint=False, export=False),
    ModelArgument("mtp_use_repeated_layer", False, _ALWAYS, fingerprint=False, export=False),
)
_ATTENTION = (
    ModelArgument("add_qkv_bias", False, _ALWAYS, fingerprint=False),
    ModelArgument("qk_layernorm", False, _LEFT_OUT),
    ModelArgument("qk_l2_norm", False, _LEFT_OUT),
    ModelArgument("attention_output_gate", False, _LEFT_OUT, fingerprint=False),
    ModelArgument("softmax_type", "vanilla", _LEFT_OUT),
    ModelArgument("window_size", None, _LEFT_OUT),
    ModelArgument("window_attn_skip_freq", None, _LEFT_OUT, part_of="window_size"),
    # The same softmax, with another order of division and multiplication.
    ModelArgument("apply_query_key_layer_scaling", False, _ALWAYS, fingerprint=False, export=False),
    ModelArgument(_LATENT, False, _LEFT_OUT),
    # None is YaRN in multi-latent attention.
    ModelArgument("rope_type", None, _LEFT_OUT, part_of=_LATENT),
    ModelArgument("q_lora_rank", None, _LEFT_OUT, part_of=_LATENT),
    ModelArgument("kv_lora_rank", 32, _LEFT_OUT, part_of=_LATENT),
    ModelArgument("qk_head_dim", 128, _LEFT_OUT, part_of=_LATENT),
    ModelArgument("qk_pos_emb_head_dim", 64, _LEFT_OUT, part_of=_LATENT),
    ModelArgument("v_head_dim", 128, _LEFT_OUT, part_of=_LATENT),
    ModelArgument(_VARIANT, None, _LEFT_OUT),
    ModelArgument("linear_attention_freq", None, _LEFT_OUT, part_of=_VARIANT),
    ModelArgument("linear_conv_kernel_dim", 4, _LEFT_OUT, part_of=_VARIANT),
    ModelArgument("linear_key_head_dim", 128, _LEFT_OUT, part_of=_VARIANT),
    ModelArgument("linear_num_key_heads", 16, _LEFT_OUT, part_of=_VARIANT),
    ModelArgument("linear_value_head_dim", 128, _LEFT_OUT, part_of=_VARIANT),
    ModelArgument("linear_num_value_heads", 32, _LEFT_OUT, part_of=_VARIANT),
    ModelArgument("dsa_indexer_n_heads", None, _LEFT_OUT, part_of=_VARIANT),
    ModelArgument("dsa_indexer_head_dim", None, _LEFT_OUT, part_of=_VARIANT),
    ModelArgument("dsa_indexer_topk", None, _LEFT_OUT, part_of=_VARIANT),
    ModelArgument("dsa_indexer_topk_freq", 1, _LEFT_OUT, part_of=_VARIANT),
    ModelArgument("dsa_indexer_skip_topk_offset", 0, _LEFT_OUT, part_of=_VARIANT),
    ModelArgument("dsa_indexer_scoring_relu", True, _LEFT_OUT, part_of=_VARIANT),
    ModelArgument("dsa_indexer_rotate_activation", True, _LEFT_OUT, part_of=_VARIANT),
    ModelArgument("dsa_indexer_rope_interleaved", False, _LEFT_OUT, part_of=_VARIANT),
    ModelArgument("dsa_indexer_k_norm_epsilon", None, _LEFT_OUT, part_of=_VARIANT),
)
_POSITIONS = (
    ModelArgument("position_embedding_type", "learned_absolute", _ALWAYS),
    ModelArgument("rotary_base", 10000, _ALWAYS),
    ModelArgument("rotary_percent", 1.0, _ALWAYS),
    ModelArgument("rotary_interleaved", False, _ALWAYS),
    ModelArgument("rotary_seq_len_interpolation_factor", None, _LEFT_OUT),
    ModelArgument("no_rope_freq", None, _LEFT_OUT),
    ModelArgument("mrope_section", None, _LEFT_OUT),
    ModelArgument("use_rope_scaling", False, _LEFT_OUT),
    ModelArgument("rope_scaling_factor", 8.0, _LEFT_OUT, part_of="use_rope_scaling"),
    # YaRN's. Multi-latent attention scales its softmax by the first and the third with plain RoPE too.
    ModelArgument("rotary_scaling_factor", 1.0, _LEFT_OUT),
    ModelArgument("mscale", 1.0, _LEFT_OUT),
    ModelArgument("mscale_all_dim", 0.0, _LEFT_OUT),
    ModelArgument("yarn_original_max_position_embeddings", None, _LEFT_OUT),
    ModelArgument("yarn_beta_fast", None, _LEFT_OUT),
    ModelArgument("yarn_beta_slow", None, _LEFT_OUT),
    ModelArgument("yarn_correction_range_round_to_int", None, _LEFT_OUT),
)
_MIXTURE = (
    ModelArgument(_EXPERTS, None, _ALWAYS, fingerprint=False),
    ModelArgument("moe_layer_freq", 1, _ALWAYS, part_of=_EXPERTS),
    ModelArgument("moe_ffn_hidden_size", None, _ALWAYS, fingerprint=False, part_of=_EXPERTS),
    ModelArgument("moe_shared_expert_intermediate_size", None, _ALWAYS, fingerprint=False, part_of=_EXPERTS),
    ModelArgument("moe_shared_expert_gate", False, _LEFT_OUT, fingerprint=False, part_of=_EXPERTS),
    ModelArgument("moe_latent_size", None, _ALWAYS, fingerprint=False, part_of=_EXPERTS),
    ModelArgument("moe_router_topk", 2, _ALWAYS, part_of=_EXPERTS),
    ModelArgument("moe_router_num_groups", None, _LEFT_OUT, part_of=_EXPERTS),
    ModelArgument("moe_router_group_topk", None, _LEFT_OUT, part_of=_EXPERTS),
    ModelArgument("moe_router_pre_softmax", False, _ALWAYS, part_of=_EXPERTS),
    ModelArgument("moe_router_score_function", "softmax", _ALWAYS, part_of=_EXPERTS),
    ModelArgument("moe_router_topk_scaling_factor", None, _ALWAYS, part_of=_EXPERTS),
    ModelArgument("moe_router_enable_expert_bias", False, _ALWAYS, fingerprint=False, part_of=_EXPERTS),
    ModelArgument("moe_apply_probs_on_input", False, _LEFT_OUT, part_of=_EXPERTS),
    ModelArgument("moe_mlp_glu_interleave_size", None, _LEFT_OUT, part_of=_EXPERTS),
    ModelArgument("moe_shared_expert_glu_interleave_size", None, _LEFT_OUT, part_of=_EXPERTS),
)
_MAXIMAL_UPDATE = (
    ModelArgument(_MUP, False, _LEFT_OUT),
    ModelArgument("mup_base_hidden_size", None, _LEFT_OUT, part_of=_MUP),
    ModelArgument("mup_base_head_dim", None, _LEFT_OUT, part_of=_MUP),
    ModelArgument("mup_attn_scale_power", 1.0, _LEFT_OUT, part_of=_MUP),
    ModelArgument("mup_embedding_mult", 1.0, _LEFT_OUT, part_of=_MUP),
    ModelArgument("mup_output_mult", 1.0, _LEFT_OUT, part_of=_MUP),
)

MODEL_ARGUMENTS: tuple[ModelArgument, ...] = (
    *_SIZES,
    *_LAYERS,
    *_ATTENTION,
    *_POSITIONS,
    *_MIXTURE,
    *_MAXIMAL_UPDATE,
)
NEUTRAL: dict[str, Any] = {row.name: row.neutral for row in MODEL_ARGUMENTS}


def neutral(*names: str) -> dict[str, Any]:
    """The neutral values of these arguments; KeyError for a name that the table does not have."""
    return {name: NEUTRAL[name] for name in names}


def take_left_out(run: argparse.Namespace, saved: argparse.Namespace) -> None:
    """Give ``run`` what Megatron leaves out of the model arguments ``saved`` in a checkpoint."""
    for row in MODEL_ARGUMENTS:
        value = getattr(saved, row.name, None)
        if row.taken is Taken.LEFT_OUT and value is not None:
            setattr(run, row.name, value)


def not_neutral(saved: argparse.Namespace) -> dict[str, Any]:
    """The arguments ``saved`` in a checkpoint that belong to the fingerprint and are stated and not neutral, by name.

    An argument that the table gains later leaves the result for all models without that feature as it is.
    """
    values = {row.name: getattr(saved, row.name, None) for row in MODEL_ARGUMENTS if row.fingerprint}
    return {name: value for name, value in values.items() if value is not None and value != NEUTRAL[name]}


def has_effect(row: ModelArgument, arguments: Mapping[str, Any]) -> bool:
    """Whether the feature that ``row`` is part of is switched on in ``arguments``."""
    if row.part_of is None:
        return True
    return arguments.get(row.part_of) not in (None, NEUTRAL[row.part_of])
