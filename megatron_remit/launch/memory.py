"""What a run needs on its fullest GPU: an estimate from the tensors of policy and reference.

For the layers of this program and Transformer Engine's: attention that keeps no [S, S] matrix, kernels of their own for
the NLL. It leaves out NCCL's buffers, the CUDA context, fragmentation and what a layer needs for a moment.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_remit.kernels.chunked_head_logprob import CHUNK_BYTES
from megatron_remit.launch.parameters import Model, Part, stages

# A norm in plain torch keeps its input and its output in fp32; Transformer Engine's keeps neither.
_NORM_COPIES = 8
# Megatron's cross-entropy holds logits in the model's precision and in fp32; in the backward pass a gradient as well.
_FP32_LOGIT = 4


@dataclass(frozen=True)
class Placed:
    """A model on the run's ranks: its arguments (for policy and reference they differ in shape only), and its size."""

    args: argparse.Namespace
    model: Model
    layers: list[int]
    """Layers of each pipeline rank."""


@dataclass(frozen=True)
class Memory:
    """Bytes on a GPU. Scoring and training take turns, so their parts do not add up."""

    weights_and_optimizer: float
    activations: float
    """With the logits of a microbatch."""
    reference_weights: float
    scoring: float
    hidden: float
    """The reference's final hidden states of one step, which ``kd`` reads."""

    @property
    def peak(self) -> float:
        """Bytes at the fuller of the two moments."""
        fixed = self.weights_and_optimizer + self.reference_weights + self.hidden
        return fixed + max(self.activations, self.scoring)


def layers_per_stage(args: argparse.Namespace, config: TransformerConfig) -> list[int]:
    """The layers that Megatron builds on each pipeline rank, over all its virtual stages."""
    chunks = range(args.virtual_pipeline_model_parallel_size or 1)
    ranks = range(args.pipeline_model_parallel_size)
    if config.pipeline_model_parallel_layout is not None:
        layout = config.pipeline_model_parallel_layout.layout
        return [sum(layout[rank][chunk].count(LayerType.decoder) for chunk in chunks) for rank in ranks]
    virtual = args.virtual_pipeline_model_parallel_size is not None
    return [
        sum(get_num_layers_to_build(config, chunk if virtual else None, rank) for chunk in chunks) for rank in ranks
    ]


def estimate(policy: Placed, references: Sequence[Placed], microbatches: int) -> Memory:
    """The memory of the fullest GPU.

    Args:
        policy: with Megatron's validated arguments.
        references: the frozen models that score ahead; none for NTP or a run from stores.
        microbatches: per step and data-parallel rank.
    """
    ranks = range(policy.args.pipeline_model_parallel_size)
    own = list(stages(policy.model, policy.layers))
    others = [(reference, list(stages(reference.model, reference.layers))) for reference in references]
    found = []
    for rank in ranks:
        last = references if rank == ranks[-1] else ()
        logits = _logits(policy, policy.args.micro_batch_size, training=True) if rank == ranks[-1] else 0.0
        found.append(
            Memory(
                _weights(policy, own[rank], rank, *_training_bytes(policy.args)),
                _activations(policy, own[rank], rank, microbatches) + logits,
                sum(_weights(model, parts[rank], rank, _width(policy.args), 0) for model, parts in others),
                max(map(_scoring, last), default=0.0),  # the models take turns
                sum(_hidden(model, microbatches) for model in last),
            )
        )
    return max(found, key=lambda memory: memory.peak)


def _width(args: argparse.Namespace) -> int:
    """Bytes of a weight or an activation."""
    return 2 if args.bf16 or args.fp16 else 4


def _training_bytes(args: argparse.Namespace) -> tuple[int, int]:
    """Per parameter: weight and fp32 gradient; what the distributed optimizer divides (an fp32 weight, two moments)."""
    return (6, 12) if args.bf16 or args.fp16 else (8, 8)


def _weights(placed: Placed, stage: Part, rank: int, held: int, divided: int) -> float:
    args, model, last = placed.args, placed.model, placed.args.pipeline_model_parallel_size - 1
    matrices = stage.split
    if rank == 0:
        matrices += _padded(args, model.embedding)
    if rank == last and (model.output or last > 0):
        # A shared embedding stands on the first and on the last stage.
        matrices += _padded(args, model.output or model.embedding)
    dense = matrices / args.tensor_model_parallel_size + stage.whole + (model.final if rank == last else 0)
    expert_ranks = args.expert_model_parallel_size * args.expert_tensor_parallel_size
    experts = stage.experts / expert_ranks
    if not args.use_distributed_optimizer:
        return (dense + experts) * (held + divided)
    copies = args.data_parallel_size * args.context_parallel_size
    expert_copies = args.world_size // (expert_ranks * args.pipeline_model_parallel_size)
    return dense * (held + divided / copies) + experts * (held + divided / expert_copies)


def _padded(args: argparse.Namespace, parameters: int) -> int:
    return parameters // args.remit_vocab_size * args.padded_vocab_size


def _tokens(args: argparse.Namespace, sequences: int) -> int:
    return sequences * args.seq_length // args.context_parallel_size


def _activations(policy: Placed, stage: Part, rank: int, microbatches: int) -> float:
    """What the stage's microbatches under way keep for the backward pass."""
    args, tp_size = policy.args, policy.args.tensor_model_parallel_size
    along = tp_size if args.sequence_parallel else 1
    norm_bytes = 0 if args.transformer_impl == "transformer_engine" else _NORM_COPIES
    per_token = _width(args) * (stage.kept_split / tp_size + stage.kept_whole / along)
    per_token += norm_bytes * (stage.normed_split / tp_size + stage.normed_whole / along)
    count = policy.layers[rank]
    if args.recompute_granularity == "full" and count:
        # Each layer's input, and one layer while it is run again.
        per_token = per_token / count + _width(args) * args.hidden_size * count / along
    pipeline, chunks = args.pipeline_model_parallel_size, args.virtual_pipeline_model_parallel_size
    under_way: float = min(pipeline - rank, microbatches)
    if chunks:
        # Narayanan et al. 2021 (arXiv:2104.04473): interleaving keeps more of them.
        under_way *= 1 + (pipeline - 1) / (pipeline * chunks)
    return per_token * _tokens(args, args.micro_batch_size) * under_way


def _logits(placed: Placed, sequences: int, training: bool) -> float:
    """A microbatch's logits; the kernels write the gradient over them."""
    args = placed.args
    count = _tokens(args, sequences) * args.padded_vocab_size / args.tensor_model_parallel_size
    width = _width(args)
    if args.cross_entropy_impl == "megatron":
        return count * (width + _FP32_LOGIT + (width if training else 0))
    return count * width


def _scoring(reference: Placed) -> float:
    """The reference's logits: the kernels make a chunk of them at a time."""
    args = reference.args
    logits = _logits(reference, args.reference_micro_batch_size, training=False)
    return logits if args.cross_entropy_impl == "megatron" else min(logits, CHUNK_BYTES)


def _hidden(reference: Placed, microbatches: int) -> float:
    args = reference.args
    if args.objective != "kd":
        return 0.0
    along = args.tensor_model_parallel_size if args.sequence_parallel else 1
    return microbatches * _tokens(args, args.micro_batch_size) * args.hidden_size * _width(args) / along
