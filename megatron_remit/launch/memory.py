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

from megatron_remit.launch.activations import Placed, activations, hidden, scoring, width


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

    offloaded: bool = False
    """Whether the reference's weights are there only while it scores (``--reference-offload``)."""

    @property
    def peak(self) -> float:
        """Bytes at the fuller of the two moments."""
        training = self.activations + (0 if self.offloaded else self.reference_weights)
        return self.weights_and_optimizer + self.hidden + max(training, self.scoring + self.reference_weights)


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
    """The memory of the fullest GPU, of those of :func:`estimate_ranks`."""
    return max(estimate_ranks(policy, references, microbatches), key=lambda memory: memory.peak)


def estimate_ranks(policy: Placed, references: Sequence[Placed], microbatches: int) -> list[Memory]:
    """The memory of a GPU of each pipeline stage.

    Args:
        policy: with Megatron's validated arguments.
        references: the frozen models that score ahead; none for NTP or a run from stores.
        microbatches: per step and data-parallel rank.
    """
    ranks = range(policy.args.pipeline_model_parallel_size)
    found = []
    for rank in ranks:
        last = references if rank == ranks[-1] else ()
        found.append(
            Memory(
                _weights(policy, rank, *_training_bytes(policy.args)),
                activations(policy, rank, microbatches),
                sum(_weights(model, rank, width(policy.args), 0) for model in references),
                # The models take turns.
                max((scoring(model, rank) for model in references), default=0.0),
                sum(hidden(model, microbatches) for model in last),
                policy.args.reference_offload,
            )
        )
    return found


def _training_bytes(args: argparse.Namespace) -> tuple[int, int]:
    """Per parameter: weight and fp32 gradient; what the distributed optimizer divides (an fp32 weight, two moments)."""
    return (6, 12) if args.bf16 or args.fp16 else (8, 8)


def held_parameters(placed: Placed, rank: int) -> tuple[float, float]:
    """Parameters on a GPU of pipeline stage ``rank``: those outside routed experts, and theirs."""
    args, model, last = placed.args, placed.model, placed.args.pipeline_model_parallel_size - 1
    stage = placed.parts[rank]
    matrices = stage.split
    if rank == 0:
        matrices += _padded(args, model.embedding)
    if rank == last and (model.output or last > 0):
        # A shared embedding stands on the first and on the last stage.
        matrices += _padded(args, model.output or model.embedding)
    dense = matrices / args.tensor_model_parallel_size + stage.whole + (model.final if rank == last else 0)
    return dense, stage.experts / (args.expert_model_parallel_size * args.expert_tensor_parallel_size)


def _weights(placed: Placed, rank: int, held: int, divided: int) -> float:
    args = placed.args
    dense, experts = held_parameters(placed, rank)
    expert_ranks = args.expert_model_parallel_size * args.expert_tensor_parallel_size
    if not args.use_distributed_optimizer:
        return (dense + experts) * (held + divided)
    copies = args.data_parallel_size * args.context_parallel_size
    expert_copies = args.world_size // (expert_ranks * args.pipeline_model_parallel_size)
    return dense * (held + divided / copies) + experts * (held + divided / expert_copies)


def _padded(args: argparse.Namespace, parameters: int) -> int:
    return parameters // args.remit_vocab_size * args.padded_vocab_size
