"""The plan of a run, made without a GPU: whether it fits together, its length, and its memory per GPU."""

import argparse
import copy
from pathlib import Path

from megatron.training.arguments import add_megatron_arguments
from megatron.training.vocab_utils import calculate_padded_vocab_size

from megatron_remit import cpu
from megatron_remit.arguments import add_remit_arguments
from megatron_remit.convert.families import read_config
from megatron_remit.data.checked import corpora_of
from megatron_remit.data.eod import RunTokenizer
from megatron_remit.data.manifest import check_manifest
from megatron_remit.errors import UserError
from megatron_remit.launch.memory import Memory, estimate
from megatron_remit.launch.vocabulary import check_vocabulary
from megatron_remit.objectives.registry import objective_class
from megatron_remit.reference.fit import check_length

_GIB = 2**30


def plan_run(base_hf: Path, reference_hf: Path | None, gpus: int, training: list[str]) -> str:
    """A few lines about the run that the training program would make with the flags ``training`` on ``gpus`` GPUs.

    The models' shapes come from the configs in ``base_hf`` and ``reference_hf`` (None for NTP), two Hugging Face
    folders, so nothing needs to be imported yet.

    Raises:
        UserError: an unknown model, a reference or a corpus of another tokenizer, a layout that does not divide.
    """
    policy = _arguments(training)
    _set_layout(policy, gpus)
    microbatches = _microbatches(policy)
    # A reference of another family has none of the policy's shape arguments: copied before they are set.
    reference = copy.copy(policy) if objective_class(policy.objective).needs_reference else None
    _set_shape(policy, base_hf)
    if reference is not None:
        if reference_hf is None:
            raise UserError(
                f"--objective {policy.objective} needs --reference-hf, the Hugging Face folder of the reference"
            )
        _set_shape(reference, reference_hf)
        # As in training: only the rows that the policy has are built.
        reference.padded_vocab_size = policy.padded_vocab_size
    tokenizer = RunTokenizer.of_folder(base_hf)
    corpora = {prefix: check_manifest(prefix, tokenizer).tokens for prefix in corpora_of(policy)}
    if not corpora and not policy.mock_data:
        raise UserError("--data-path is not set; give the prefix of a corpus")
    notes = check_vocabulary(policy, base_hf, reference_hf if reference is not None else None)
    return "\n".join(
        [
            *_describe_steps(policy, corpora, microbatches),
            *(f"note    {note}" for note in notes),
            *_describe_memory(policy, estimate(policy, reference, microbatches)),
        ]
    )


def _arguments(training: list[str]) -> argparse.Namespace:
    cpu.install()
    parser = add_remit_arguments(add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)), training)
    args = parser.parse_args(training)
    if args.reference_micro_batch_size is None:
        args.reference_micro_batch_size = args.micro_batch_size
    return args


def _set_layout(args: argparse.Namespace, gpus: int) -> None:
    model = args.tensor_model_parallel_size * args.pipeline_model_parallel_size * args.context_parallel_size
    if gpus % model:
        raise UserError(
            f"{gpus} GPUs do not divide by tensor x pipeline x context parallelism = {args.tensor_model_parallel_size}"
            f" x {args.pipeline_model_parallel_size} x {args.context_parallel_size}"
        )
    args.world_size, args.data_parallel_size = gpus, gpus // model
    # What Megatron's validation derives; the memory functions read it.
    args.expert_tensor_parallel_size = args.expert_tensor_parallel_size or args.tensor_model_parallel_size
    args.virtual_pipeline_model_parallel_size = None


def _microbatches(args: argparse.Namespace) -> int:
    for flag, size in (
        ("--micro-batch-size", args.micro_batch_size),
        ("--reference-micro-batch-size", args.reference_micro_batch_size),
    ):
        if args.global_batch_size % (size * args.data_parallel_size):
            raise UserError(
                f"--global-batch-size {args.global_batch_size} does not divide by {flag} {size} x "
                f"{args.data_parallel_size} data-parallel ranks"
            )
    return args.global_batch_size // (args.micro_batch_size * args.data_parallel_size)


def _set_shape(args: argparse.Namespace, hf: Path) -> None:
    family, config = read_config(hf)
    for name, value in family.arguments(config).items():
        setattr(args, name, value)
    check_length(str(hf / "config.json"), args.max_position_embeddings, args.seq_length)
    args.padded_vocab_size = calculate_padded_vocab_size(
        config["vocab_size"], args.make_vocab_size_divisible_by, args.tensor_model_parallel_size, logging_enabled=False
    )
    per_stage = args.num_layers_per_virtual_pipeline_stage
    if per_stage is not None:
        stages = args.pipeline_model_parallel_size
        args.virtual_pipeline_model_parallel_size = args.num_layers // stages // per_stage


def _describe_steps(args: argparse.Namespace, corpora: dict[str, int], microbatches: int) -> list[str]:
    tokens = args.global_batch_size * args.seq_length
    return [
        f"steps   {args.train_iters} of {tokens:,} tokens ({args.global_batch_size} sequences of {args.seq_length}), "
        f"{args.train_iters * tokens / 1e9:.3g}B tokens in all",
        *(f"corpus  {prefix}: {count:,} tokens" for prefix, count in corpora.items()),
        f"layout  {args.world_size} GPUs = TP {args.tensor_model_parallel_size} x "
        f"PP {args.pipeline_model_parallel_size} x CP {args.context_parallel_size} x DP {args.data_parallel_size}, "
        f"{microbatches} microbatches of {args.micro_batch_size} per step",
    ]


def _describe_memory(args: argparse.Namespace, memory: Memory) -> list[str]:
    lines = [("weights, gradients, optimizer", memory.weights_and_optimizer), ("activations", memory.activations)]
    with_reference = objective_class(args.objective).needs_reference
    if with_reference:
        lines += [("reference: weights", memory.reference_weights), ("reference: logits", memory.scoring)]
    return [
        "memory  of the fullest GPU in GiB, an estimate for bf16 without buffers of NCCL and fragmentation:",
        *(f"        {name:<30}{size / _GIB:8.2f}" for name, size in lines),
        f"        {'peak':<30}{memory.peak / _GIB:8.2f}"
        + ("   (activations and reference logits take turns)" if with_reference else ""),
    ]
