"""Predicted time of a training step, by formulas: arithmetic, memory traffic, communication, pipeline bubble.

Nothing here has been compared with a run on a GPU. A stage's time is the sum of its parts; what Megatron overlaps is
taken off where it says so. Assumed:

- matrix products reach 0.7 and attention 0.5 of the dense bf16 peak: large products of cuBLAS on an H100, and between
  FlashAttention-2 and 3 as published (Dao 2023, arXiv:2307.08691; Shah et al. 2024, arXiv:2407.08608);
- fused norms, SwiGLU, RoPE and residuals read and write what a layer keeps 1.5 times forward and 2.5 times backward, at
  0.8 of the bandwidth: the passes of OLMo-2's layer, counted by hand;
- collectives move the bytes of a ring (Patarasuk and Yuan 2009) at 0.8 of the link: NVLink inside a node, else one
  network card per GPU. Tensor, context and expert parallelism wait for theirs; the distributed optimizer hides its own
  behind one microbatch where --overlap-grad-reduce and --overlap-param-gather say so; interleaved stages hide theirs;
- a pipeline of p stages with v chunks adds (p - 1) / v microbatches (Narayanan et al. 2021, arXiv:2104.04473), and the
  reference's pass over a step hides its own drain (docs/architecture.md).

- a layer starts 30 kernels forward and 60 backward, each with a gap of 2 microseconds: what makes micro-batches of few
  tokens slow.

Left out: uneven experts, stragglers, reading of corpora and stores, checkpoints.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_remit.launch.activations import Placed, tokens_of, width
from megatron_remit.launch.gpus import Gpu
from megatron_remit.launch.memory import held_parameters
from megatron_remit.launch.parameters import Part

PRODUCTS, ATTENTION, TRAFFIC, LINK = 0.7, 0.5, 0.8, 0.8
_FORWARD_PASSES, _BACKWARD_PASSES = 1.5, 2.5
# What a backward pass takes in forward passes: FlashAttention computes the scores again.
_BACKWARD = {"products": 2.0, "attention": 2.5, "traffic": _BACKWARD_PASSES / _FORWARD_PASSES}
# Sequence parallelism gathers the inputs of two products again for the gradients of their weights: 6 collectives to 4.
_BACKWARD |= {"TP": 1.5, "CP": 2.0, "EP": 1.0, "starts": 2.0}
_KERNELS, _START = 30, 2e-6
HOST = 50e9
"""Bytes per second between pinned host memory and a GPU: PCIe 5 with 16 lanes."""
# Adam on a rank's share: gradient, weight and two moments in fp32 are read, the last three written, the weight copied.
_ADAM_BYTES = 30

Seconds = dict[str, float]


@dataclass(frozen=True)
class Step:
    """Predicted seconds of a step."""

    policy: Seconds
    """By part; without a reference these are all."""
    reference: float
    """The frozen models' passes, and the copy of their weights with ``--reference-offload``."""
    tokens: int
    """Of a step, over all GPUs."""
    gpus: int

    @property
    def speed(self) -> float:
        """Tokens per second of a GPU, scored ahead."""
        return self.tokens / self.gpus / (sum(self.policy.values()) + self.reference)

    @property
    def online(self) -> float:
        """Throughput as a share of next-token prediction's. A run from stores is at 1: its reads are not counted."""
        policy = sum(self.policy.values())
        return policy / (policy + self.reference)

    @property
    def bound(self) -> str:
        """The largest part of the step."""
        parts = {**self.policy, "reference": self.reference}
        return max(parts, key=lambda name: parts[name])


def predict(policy: Placed, references: Sequence[Placed], kind: Gpu, gpus_per_node: int) -> Step:
    """The step of ``policy``, scored ahead by ``references``, on GPUs of ``kind``."""
    args = policy.args
    microbatches = args.global_batch_size // (args.micro_batch_size * args.data_parallel_size)
    times = [_stage(policy, args.micro_batch_size, rank, kind, gpus_per_node) for rank in _ranks(args)]
    forward = max(times, key=lambda time: sum(time.values()))
    again = 1 if args.recompute_granularity == "full" else 0
    backward = {name: seconds * (_BACKWARD[name] + again) for name, seconds in forward.items()}
    both = sum(forward.values()) + sum(backward.values())
    total = {name: microbatches * (forward[name] + backward[name]) for name in forward}
    pipeline, chunks = args.pipeline_model_parallel_size, args.virtual_pipeline_model_parallel_size or 1
    if pipeline > 1:
        total["bubble"] = both * (pipeline - 1) / chunks
        if chunks == 1:
            total["PP"] = 2 * microbatches * _send(policy, kind, gpus_per_node)
    reference = sum(_scoring(frozen, kind, gpus_per_node) for frozen in references)
    behind = sum(backward.values()), reference or sum(forward.values())
    _add_optimizer(total, policy, behind, kind, gpus_per_node)
    return Step(total, reference, args.global_batch_size * args.seq_length, args.world_size)


def _ranks(args: argparse.Namespace) -> range:
    return range(args.pipeline_model_parallel_size)


def _stage(placed: Placed, sequences: int, rank: int, kind: Gpu, gpus_per_node: int) -> Seconds:
    """The forward pass of one microbatch on a stage."""
    args, stage, count = placed.args, placed.parts[rank], placed.layers[rank]
    tokens, tp_size, cp_size = tokens_of(args, sequences), args.tensor_model_parallel_size, args.context_parallel_size
    multiplied = stage.active
    if rank == args.pipeline_model_parallel_size - 1:
        multiplied += args.padded_vocab_size * args.hidden_size
    along = tp_size if args.sequence_parallel else 1
    kept = width(args) * tokens * (stage.kept_split / tp_size + stage.kept_whole / along)
    hidden = width(args) * tokens * args.hidden_size
    time = {
        "products": 2 * tokens * multiplied / tp_size / (PRODUCTS * kind.peak),
        "attention": tokens * _scores(args, stage, count) / tp_size / (ATTENTION * kind.peak),
        "traffic": _FORWARD_PASSES * kept / (TRAFFIC * kind.bandwidth),
        "starts": count * _KERNELS * _START,
    }
    if tp_size > 1:
        time["TP"] = 4 * count * hidden * (tp_size - 1) / tp_size / _link(kind, tp_size, gpus_per_node)
    if cp_size > 1:
        keys = 2 * args.num_query_groups * args.kv_channels / tp_size
        moved = count * (cp_size - 1) * width(args) * tokens * keys
        time["CP"] = moved / _link(kind, tp_size * cp_size, gpus_per_node)
    ep_size = args.expert_model_parallel_size
    if ep_size > 1:
        first = sum(placed.layers[:rank])
        mixtures = sum(layer.experts > 0 for layer in placed.model.layers[first : first + count])
        moved = 2 * mixtures * hidden / along * args.moe_router_topk * (ep_size - 1) / ep_size
        time["EP"] = moved / _link(kind, ep_size * args.expert_tensor_parallel_size, gpus_per_node)
    return time


def _scores(args: argparse.Namespace, stage: Part, count: int) -> float:
    """Operations of attention per token: 2 for each number of each key and value that it sees."""
    keys = values = args.kv_channels
    if args.multi_latent_attention:
        keys, values = args.qk_head_dim + args.qk_pos_emb_head_dim, args.v_head_dim
    seen = args.seq_length / 2
    window = min((args.window_size or (args.seq_length,))[0] + 1, args.seq_length)
    in_window = window * (1 - window / (2 * args.seq_length))
    pairs = (count - stage.windowed) * seen + stage.windowed * in_window
    return 2 * args.num_attention_heads * (keys + values) * pairs


def _link(kind: Gpu, span: int, gpus_per_node: int) -> float:
    """Bytes per second of a group over ``span`` neighbouring ranks."""
    return LINK * (kind.nvlink if span <= gpus_per_node else kind.network)


def _send(policy: Placed, kind: Gpu, gpus_per_node: int) -> float:
    """Seconds of a microbatch's hidden states on their way to the next stage."""
    args = policy.args
    along = args.tensor_model_parallel_size if args.sequence_parallel else 1
    size = width(args) * tokens_of(args, args.micro_batch_size) * args.hidden_size / along
    return size / _link(kind, args.world_size, gpus_per_node)


def _scoring(frozen: Placed, kind: Gpu, gpus_per_node: int) -> float:
    """The passes of a frozen model over a step, and the copy of its weights if they wait on the host."""
    args = frozen.args
    sequences = args.reference_micro_batch_size
    times = [sum(_stage(frozen, sequences, rank, kind, gpus_per_node).values()) for rank in _ranks(args)]
    seconds = max(times) * (args.global_batch_size // (sequences * args.data_parallel_size))
    if args.reference_offload:
        weights = [sum(held_parameters(frozen, rank)) for rank in _ranks(args)]
        seconds += max(weights) * width(args) / HOST
    return seconds


def _add_optimizer(total: Seconds, policy: Placed, behind: tuple[float, float], kind: Gpu, gpus_per_node: int) -> None:
    """Adam, and the collectives of gradients and of weights as far as they do not hide ``behind`` these seconds."""
    args, (backward, before) = policy.args, behind
    on_ranks = [held_parameters(policy, rank) for rank in _ranks(args)]
    dense, experts = max(on_ranks, key=sum)
    copies = args.data_parallel_size * args.context_parallel_size
    expert_ranks = args.expert_model_parallel_size * args.expert_tensor_parallel_size
    expert_copies = args.world_size // (expert_ranks * args.pipeline_model_parallel_size)
    span = args.world_size // args.pipeline_model_parallel_size
    share = dense / copies + experts / expert_copies if args.use_distributed_optimizer else dense + experts
    total["optimizer"] = _ADAM_BYTES * share / (TRAFFIC * kind.bandwidth)
    # Numbers that leave a rank in a ring.
    moved = dense * (copies - 1) / copies + experts * (expert_copies - 1) / expert_copies
    one_way = moved / _link(kind, span, gpus_per_node)
    gradients, weights = 4 * one_way, width(args) * one_way
    if not args.use_distributed_optimizer:
        gradients, weights = 2 * gradients, 0.0
    total["DP"] = max(gradients - (backward if args.overlap_grad_reduce else 0.0), 0.0)
    total["DP"] += max(weights - (before if args.overlap_param_gather else 0.0), 0.0)
