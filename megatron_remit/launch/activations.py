"""What a GPU holds of its microbatches: values of the layers for the backward pass, logits, and scoring's own.

The moments are those at which a stage is fullest: when its last microbatch under way begins its backward pass, and
when the reference runs. Counted against the simulation (docs/simulate.md has the table). Left out is what an operator
holds for a moment, and what the experts of a layer get more than their even share of the tokens.
"""

import argparse
from dataclasses import dataclass
from functools import cached_property

from megatron_remit.kernels.chunked_head_logprob import CHUNK_BYTES
from megatron_remit.launch.parameters import Model, Part, stages
from megatron_remit.specs.window import BLOCK

# The logarithm of each head's sum of exponentials, in fp32, which attention keeps for its backward pass.
_STATISTIC = 4
# Megatron's cross-entropy holds logits in the model's precision and in fp32; in the backward pass a gradient as well.
_FP32_LOGIT = 4
# Cosine and sine, of queries and of keys: a RoPE that is not fused makes them in each layer. Multi-latent attention
# makes the angles in each layer too, in fp32.
_ROPE_TABLES, _FP32_ANGLE = 4, 4


@dataclass(frozen=True)
class Placed:
    """A model on the run's ranks: its arguments (for policy and reference they differ in shape only), and its size."""

    args: argparse.Namespace
    model: Model
    layers: list[int]
    """Layers of each pipeline rank."""

    @cached_property
    def parts(self) -> list[Part]:
        """The sum over the layers of each pipeline rank."""
        return list(stages(self.model, self.layers))


def width(args: argparse.Namespace) -> int:
    """Bytes of a weight or an activation."""
    return 2 if args.bf16 or args.fp16 else 4


def tokens_of(args: argparse.Namespace, sequences: int) -> int:
    """Tokens of ``sequences`` on one context-parallel rank."""
    return sequences * args.seq_length // args.context_parallel_size


def activations(policy: Placed, rank: int, microbatches: int) -> float:
    """Bytes that pipeline stage ``rank`` holds for its ``microbatches`` of a step."""
    args, count = policy.args, policy.layers[rank]
    one = _layers(policy, policy.parts[rank], count, args.micro_batch_size)
    moment = _layer_for_a_moment(args, args.micro_batch_size)
    if args.recompute_granularity == "full" and count:
        # Each layer's input, and one layer while it is run again.
        moment += one / count
        one = _hidden_states(args, args.micro_batch_size) * count
    if rank == args.pipeline_model_parallel_size - 1:
        moment = max(moment, _head(policy))
    return one * _under_way(args, rank, microbatches) + moment


def _under_way(args: argparse.Namespace, rank: int, microbatches: int) -> float:
    """Microbatches of all of a stage's layers that wait for their backward pass, by Megatron's schedules."""
    later = args.pipeline_model_parallel_size - rank - 1
    chunks = args.virtual_pipeline_model_parallel_size
    if not chunks:
        return min(later + 1, microbatches)
    group = args.microbatch_group_size_per_vp_stage or args.pipeline_model_parallel_size
    return min(2 * later + (chunks - 1) * group + 1, microbatches * chunks) / chunks


def _layers(placed: Placed, stage: Part, count: int, sequences: int) -> float:
    """What ``count`` layers with the sum ``stage`` keep of one microbatch."""
    args, tp_size = placed.args, placed.args.tensor_model_parallel_size
    per_token = width(args) * (stage.kept_split / tp_size + stage.kept_whole / _along(args))
    per_token += _STATISTIC * args.num_attention_heads * count / tp_size
    if args.multi_latent_attention and tp_size > 1:
        # Compressed queries, keys and values, gathered from all ranks.
        compressed = (args.q_lora_rank or 0) + args.kv_lora_rank + args.qk_pos_emb_head_dim
        per_token += width(args) * compressed * count
    kept = per_token * tokens_of(args, sequences) + stage.rotated * _rope_tables(args)
    if args.transformer_impl == "local":
        kept += _masks(args, stage, count, sequences)
    return kept


def _masks(args: argparse.Namespace, stage: Part, count: int, sequences: int) -> float:
    """What torch's attention makes of masks, in the precision of the queries: one for each layer."""
    queries, window = args.seq_length // args.context_parallel_size, (args.window_size or (0, 0))[0] + 1
    windowed = stage.windowed if window < args.seq_length else 0
    if args.reset_attention_mask:
        return width(args) * sequences * queries * (count - windowed) * args.seq_length
    if not windowed:
        return 0.0
    # Blocks of queries, each with the keys that one of them sees, and the blocks' outputs before they are joined.
    block = min(window, BLOCK)
    seen = sum(min(end, block + window - 1) * block for end in range(block, queries + 1, block))
    outputs = sequences * queries * args.num_attention_heads * args.kv_channels / args.tensor_model_parallel_size
    return width(args) * windowed * (seen + outputs)


def _along(args: argparse.Namespace) -> int:
    """Ranks over which a sequence's hidden states are divided."""
    return args.tensor_model_parallel_size if args.sequence_parallel else 1


def _hidden_states(args: argparse.Namespace, sequences: int) -> float:
    return width(args) * tokens_of(args, sequences) * args.hidden_size / _along(args)


def _rope_tables(args: argparse.Namespace) -> float:
    """Of one layer, whatever the micro-batch."""
    if args.apply_rope_fusion:
        return 0.0
    tables = _ROPE_TABLES * width(args) * tokens_of(args, 1)
    if args.multi_latent_attention:
        return (tables + _FP32_ANGLE * tokens_of(args, 1)) * args.qk_pos_emb_head_dim
    return tables * args.kv_channels * args.rotary_percent


def _layer_for_a_moment(args: argparse.Namespace, sequences: int) -> float:
    """What a layer's feed-forward part holds beside what it keeps: four times its width, and the residual's gradient.

    The two halves of SwiGLU and their gradients, as torch makes them one by one.
    """
    units = args.ffn_hidden_size
    if args.num_experts:
        units = args.moe_router_topk * (args.moe_ffn_hidden_size + args.hidden_size)
    split = width(args) * tokens_of(args, sequences) * 4 * units / args.tensor_model_parallel_size
    return split + _hidden_states(args, sequences)


def _head(policy: Placed) -> float:
    """What the end of the model holds while its output layer's backward pass runs."""
    args = policy.args
    # The input of the model and the last norm's output; the gradient of that before it is divided.
    one = _hidden_states(args, args.micro_batch_size)
    held = logits(policy, args.micro_batch_size, training=True) + (2 + _along(args)) * one
    if args.sequence_parallel:
        held += _along(args) * one  # the output layer's gathered input
    if args.objective == "kd":
        # The divergence's gradient, and its sum with that of the NLL.
        return held + 2 * logits(policy, args.micro_batch_size, training=True)
    if args.gradient_accumulation_fusion:
        return held
    # The gradient of the output layer's weight, before it is added to the buffer's fp32 one.
    return held + args.padded_vocab_size * args.hidden_size * width(args) / args.tensor_model_parallel_size


def logits(placed: Placed, sequences: int, training: bool) -> float:
    """A microbatch's logits; the kernels write the gradient over them."""
    args = placed.args
    count = tokens_of(args, sequences) * args.padded_vocab_size / args.tensor_model_parallel_size
    if args.cross_entropy_impl == "megatron":
        return count * (width(args) + _FP32_LOGIT + (width(args) if training else 0))
    return count * width(args)


def scoring(reference: Placed, rank: int) -> float:
    """One layer's values of a reference's microbatch, or the logits: the kernels make a chunk of them at a time."""
    args = reference.args
    sequences = args.reference_micro_batch_size
    layer = _layer_for_a_moment(args, sequences) + 2 * _hidden_states(args, sequences)
    if rank < args.pipeline_model_parallel_size - 1:
        return layer
    whole = logits(reference, sequences, training=False)
    return max(layer, whole if args.cross_entropy_impl == "megatron" else min(whole, CHUNK_BYTES))


def hidden(reference: Placed, microbatches: int) -> float:
    """The final hidden states of a step, which ``kd`` reads."""
    args = reference.args
    if args.objective != "kd":
        return 0.0
    return microbatches * _hidden_states(args, args.micro_batch_size)
