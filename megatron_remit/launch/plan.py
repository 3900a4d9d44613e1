"""The plan of a run, made without a GPU: whether it can run, its length, its cost, and its memory per GPU."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.training.utils import get_blend_and_blend_per_split

from megatron_remit.data.checked import corpora_of
from megatron_remit.data.eod import RunTokenizer
from megatron_remit.data.manifest import check_manifest, what_is_unknown
from megatron_remit.errors import UserError
from megatron_remit.launch import cost, epochs
from megatron_remit.launch.activations import Placed
from megatron_remit.launch.gpus import DEFAULT_GPU, Gpu, gpu
from megatron_remit.launch.memory import Memory, estimate
from megatron_remit.launch.plan_checks import place
from megatron_remit.launch.vocabulary import check_vocabulary
from megatron_remit.objectives.registry import objective_class

_GIB = 2**30


@dataclass(frozen=True)
class Wishes:
    """What the plan is told beside the flags of the training program."""

    gpu: str = DEFAULT_GPU
    gpus_per_node: int = 8
    utilization: float = cost.DEFAULT_MFU
    """Share of the GPU's peak that the run reaches (MFU), for its duration."""
    max_epochs: float = epochs.DEFAULT_MAX_EPOCHS


def plan_run(
    base_hf: Path, reference_hf: Path | None, gpus: int, training: list[str], wishes: Wishes | None = None
) -> str:
    """Some lines about the run that the training program would make with the flags ``training`` on ``gpus`` GPUs.

    The models' shapes come from the configs in ``base_hf`` and ``reference_hf`` (None for a run that builds no
    reference), two Hugging Face folders, so nothing needs to be imported yet. That of ``--reference-base-load`` comes
    from the config that its import left there.

    Raises:
        UserError: all that the training program would refuse of its flags, models and corpora before step 1, or a
            corpus that is read more often than ``wishes`` allow.
    """
    # Megatron tells of every index that it opens, on the plan's own output.
    logging.getLogger("megatron").setLevel(logging.WARNING)
    wishes = wishes or Wishes()
    kind = gpu(wishes.gpu)
    if not 0.0 < wishes.utilization <= 1.0:
        raise UserError(f"--mfu {wishes.utilization}: expected a share above 0 and up to 1")
    run = place(base_hf, reference_hf, gpus, training)
    policy, frozen, args = run.policy, list(run.frozen.values()), run.policy.args
    steps = args.train_iters or args.train_samples // args.global_batch_size
    corpora = _corpora(args, base_hf, steps, wishes.max_epochs)
    compared = list(run.frozen)
    if objective_class(args.objective).needs_reference and reference_hf is not None and reference_hf not in compared:
        compared.append(reference_hf)  # its scores come from a store, which were made for tokens too
    notes = run.notes + check_vocabulary(args, base_hf, compared)
    microbatches = args.global_batch_size // (args.micro_batch_size * args.data_parallel_size)
    return "\n".join(
        [
            _describe_model("policy", policy),
            *(_describe_model("reference", placed) for placed in frozen),
            *_describe_steps(args, steps, corpora),
            *(f"note    {note}" for note in notes),
            *_describe_layout(args, microbatches, wishes.gpus_per_node),
            *_describe_compute(policy, frozen, steps, kind, wishes.utilization),
            *_describe_disk(policy, steps),
            *_describe_memory(policy, len(frozen), estimate(policy, frozen, microbatches), kind),
        ]
    )


def _corpora(args: argparse.Namespace, base_hf: Path, steps: int, max_epochs: float) -> list[str]:
    """Lines on the corpora, after their checks."""
    if args.mock_data:
        return []
    prefixes = list(dict.fromkeys(corpora_of(args)))
    if not prefixes:
        raise UserError("--data-path is not set; give the prefix of a corpus")
    tokenizer = RunTokenizer.of_folder(base_hf)
    manifests = {prefix: check_manifest(prefix, tokenizer) for prefix in prefixes}
    blend, per_split = get_blend_and_blend_per_split(args)
    share = epochs.train_share(args.split) if blend is not None else 1.0
    total = steps * args.global_batch_size * args.seq_length
    tokens = {prefix: manifest.tokens for prefix, manifest in manifests.items()}
    reads = epochs.read_per_corpus(blend if blend is not None else per_split[0], tokens, share, total)
    return [
        *(f"corpus  {read.prefix}: {read.tokens:,} tokens, {_times(read, len(reads))}" for read in reads),
        *(f"note    {unknown}" for prefix in prefixes if (unknown := what_is_unknown(prefix, manifests[prefix]))),
        *epochs.check_epochs(reads, max_epochs),
    ]


def _times(read: epochs.Read, corpora: int) -> str:
    part = f" ({100 * read.share:.3g} % of the run)" if corpora > 1 else ""
    return f"read {read.epochs:.3g} times{part}"


def _describe_model(name: str, placed: Placed) -> str:
    model = placed.model
    active = "" if not placed.args.num_experts else f", {model.active / 1e9:.3g}B of them in a token's products"
    return (
        f"{name:<10}{model.family} ({model.architecture}), {len(model.layers)} layers, "
        f"{model.parameters:,} parameters{active}"
    )


def _describe_steps(args: argparse.Namespace, steps: int, corpora: Sequence[str]) -> list[str]:
    tokens = args.global_batch_size * args.seq_length
    return [
        f"steps   {steps} of {tokens:,} tokens ({args.global_batch_size} sequences of {args.seq_length}), "
        f"{steps * tokens / 1e9:.3g}B tokens in all",
        *corpora,
    ]


def _describe_layout(args: argparse.Namespace, microbatches: int, gpus_per_node: int) -> list[str]:
    tp_size, experts = args.tensor_model_parallel_size, args.expert_model_parallel_size
    lines = [
        f"layout  {args.world_size} GPUs = TP {tp_size} x "
        f"PP {args.pipeline_model_parallel_size} x CP {args.context_parallel_size} x DP {args.data_parallel_size}, "
        + (f"EP {experts}, " if experts > 1 else "")
        + f"{microbatches} microbatches of {args.micro_batch_size} per step"
    ]
    if gpus_per_node % tp_size and tp_size > 1:
        lines.append(
            f"WARNING TP {tp_size} does not fit into nodes of {gpus_per_node} GPUs: each layer would wait for the "
            "network between nodes"
        )
    return lines


def _describe_compute(policy: Placed, frozen: Sequence[Placed], steps: int, kind: Gpu, utilization: float) -> list[str]:
    args = policy.args
    per_token = cost.compute(args, policy.model, [(placed.args, placed.model) for placed in frozen])
    speed = per_token.tokens_per_second(kind, utilization)
    hours = steps * args.global_batch_size * args.seq_length / speed / 3600
    parts = [f"policy {per_token.matrices / 1e9:.3g}", f"its attention {per_token.attention / 1e9:.3g}"]
    if frozen:
        parts.append(f"{_name(len(frozen))} {per_token.reference / 1e9:.3g}")
    return [
        f"compute {per_token.total / 1e9:.3g} GFLOP per token ({', '.join(parts)})",
        f"time    {hours:,.0f} GPU-hours, {hours / args.world_size:,.1f} hours, {speed:,.0f} tokens/s per GPU: at "
        f"{100 * utilization:.3g} % of the {kind.peak / 1e12:,.0f} TFLOP/s of {kind.name} (--mfu, --gpu)",
    ]


def _name(frozen: int) -> str:
    return "reference" if frozen == 1 else "references"


def _describe_disk(policy: Placed, steps: int) -> list[str]:
    disk = cost.disk(policy.args, policy.model, steps)
    if disk is None:
        return ["disk    no checkpoint is kept (--save, --save-interval)"]
    free = "" if disk.free is None else f", {disk.free / 1e9:,.1f} GB free"
    lines = [
        f"disk    {disk.kept} checkpoints of {disk.checkpoint / 1e9:,.3g} GB in {policy.args.save}: "
        f"{disk.total / 1e9:,.1f} GB{free}"
    ]
    if disk.free is not None and disk.free < disk.total:
        lines.append(
            "WARNING the checkpoints do not fit: --save-retain-interval keeps fewer of them (KEEP_TOKENS of the job "
            "scripts)"
        )
    return lines


def _describe_memory(policy: Placed, frozen: int, memory: Memory, kind: Gpu) -> list[str]:
    lines = [("weights, gradients, optimizer", memory.weights_and_optimizer), ("activations", memory.activations)]
    if frozen:
        name = _name(frozen)
        lines += [(f"{name}: weights", memory.reference_weights), (f"{name}: scoring", memory.scoring)]
    if memory.hidden:
        lines.append(("reference: hidden states", memory.hidden))
    free = kind.memory - memory.peak
    verdict = f"fits, {100 * free / kind.memory:.0f} % is left" if free > 0 else "DOES NOT FIT"
    return [
        f"memory  of the fullest GPU in GiB, an estimate for --transformer-impl {policy.args.transformer_impl} without "
        "buffers of NCCL and fragmentation:",
        *(f"        {name:<30}{size / _GIB:8.2f}" for name, size in lines),
        f"        {'peak':<30}{memory.peak / _GIB:8.2f}"
        + ("   (activations and scoring take turns)" if frozen else ""),
        f"        {kind.name:<30}{kind.memory / _GIB:8.2f}   {verdict}",
    ]
