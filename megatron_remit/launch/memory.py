"""What a run needs on its fullest GPU, by Megatron's own estimate and the weights of the reference."""

import argparse
from dataclasses import dataclass

from megatron.training import theoretical_memory_usage as megatron

from megatron_remit.kernels.chunked_head_logprob import CHUNK_BYTES

# Megatron has 18 bytes per weight: the weight in bf16 (2), its gradient in fp32 (4), and the weight in fp32 with two
# Adam moments (12, which the distributed optimizer divides among the data-parallel ranks). The reference has the first
# only.
_BYTES_PER_WEIGHT_IN_MEGATRON = 18
_BYTES_PER_WEIGHT = 2
# While scoring, Megatron's cross-entropy holds the logits of one reference microbatch in bf16 and in fp32; the kernels
# hold a chunk of them in bf16.
_BYTES_PER_LOGIT = 2
_BYTES_PER_LOGIT_IN_MEGATRON = 6


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest GPU. Scoring and training take turns, so their parts do not add up."""

    weights_and_optimizer: float
    activations: float
    reference_weights: float
    scoring: float

    @property
    def peak(self) -> float:
        """Bytes at the fuller of the two moments."""
        return self.weights_and_optimizer + self.reference_weights + max(self.activations, self.scoring)


def estimate(policy: argparse.Namespace, reference: argparse.Namespace | None, microbatches: int) -> Memory:
    """The memory of a bf16 run (Megatron's ``theoretical_memory_usage``, which knows no other precision).

    Args:
        policy: Megatron's arguments with the model's shape, ``world_size`` and ``data_parallel_size``.
        reference: the same with the reference's shape; None for an NTP run.
        microbatches: microbatches per step and data-parallel rank.

    It leaves out NCCL's buffers, fragmentation, the CUDA context, and without Transformer Engine the fp32 copies that
    the norms keep for the backward pass (8 bytes per element of each norm's input). Context parallelism divides the
    sequence.
    """
    local = argparse.Namespace(**vars(policy) | {"seq_length": policy.seq_length // policy.context_parallel_size})
    with_parallel_sequence = policy.sequence_parallel and policy.recompute_granularity == "selective"
    activations = (
        megatron.compute_activation_memory if with_parallel_sequence else megatron.compute_activation_memory_without_sp
    )
    weights = scoring = 0.0
    if reference is not None:
        # Without the distributed optimizer each rank holds all bytes of its weights.
        plain = argparse.Namespace(**vars(reference) | {"use_distributed_optimizer": False})
        weights = (
            megatron.compute_weight_and_optimizer_memory(plain) / _BYTES_PER_WEIGHT_IN_MEGATRON * _BYTES_PER_WEIGHT
        )
        logits = policy.reference_micro_batch_size * local.seq_length * reference.padded_vocab_size
        logits //= policy.tensor_model_parallel_size
        if policy.cross_entropy_impl == "megatron":
            scoring = logits * _BYTES_PER_LOGIT_IN_MEGATRON
        else:
            scoring = min(logits * _BYTES_PER_LOGIT, CHUNK_BYTES)
    return Memory(
        megatron.compute_weight_and_optimizer_memory(local), activations(local, microbatches), weights, scoring
    )
