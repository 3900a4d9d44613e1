"""What must hold between the flags of a run, ours and Megatron's, before anything is read or built."""

import argparse
import os
from typing import Any

from megatron_remit import cpu
from megatron_remit.data.packed import check_packed
from megatron_remit.errors import UserError
from megatron_remit.objectives.base import Objective
from megatron_remit.objectives.registry import OBJECTIVES, objective_class
from megatron_remit.reference.offload import check_offload
from megatron_remit.reference.precision import check_precision
from megatron_remit.scoring.arguments import check_base, check_score_store, scores_ahead, scores_base_ahead


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse combinations of flags that cannot work.

    Raises:
        UserError: names the flag, what was found and what to do.
    """
    if args.dataloader_inter_document_masking:
        check_packed(args)
    if args.reset_attention_mask:
        args.create_attention_mask_in_dataloader = True
        if args.transformer_impl == "transformer_engine":
            raise UserError(
                "--reset-attention-mask with --transformer-impl transformer_engine: Megatron asks Transformer Engine "
                "for causal attention, which ignores the mask; use --dataloader-inter-document-masking, or "
                "--transformer-impl local"
            )
        if args.pipeline_model_parallel_size > 2 or args.virtual_pipeline_model_parallel_size:
            raise UserError(
                f"--reset-attention-mask with --pipeline-model-parallel-size {args.pipeline_model_parallel_size} and "
                f"{args.virtual_pipeline_model_parallel_size or 1} model chunks a stage: the chunks between the first "
                "and the last read no data and so know no document borders; use "
                "--dataloader-inter-document-masking, or at most 2 stages of one chunk"
            )
    if args.row_seed is not None and args.mock_data:
        raise UserError("--row-seed cuts a corpus into rows, and --mock-data has none; leave one of them out")
    if args.num_experts is not None and args.tensor_model_parallel_size > 1 and not args.sequence_parallel:
        raise UserError(
            f"--tensor-model-parallel-size {args.tensor_model_parallel_size} with {args.num_experts} experts: Megatron "
            "trains experts under tensor parallelism with --sequence-parallel only; pass it"
        )
    if args.save_keep_last > 1 and args.save_retain_interval is None:
        raise UserError(
            f"--save-keep-last {args.save_keep_last} without --save-retain-interval: no checkpoint is removed at all; "
            "give both, or neither"
        )
    if not cpu.has_cuda():
        _check_without_cuda(args)
    chosen = objective_class(args.objective)
    for objective in OBJECTIVES.values():
        # An heir takes the flags of its parent, and the parent its own.
        if "check_arguments" in vars(objective) and not issubclass(chosen, objective):
            objective.check_arguments(args, chosen=False)
    check_score_store(args)
    check_base(args)
    check_precision(args, chosen.needs_reference)
    builds_reference = scores_ahead(args) or scores_base_ahead(args)
    check_offload(args, builds_reference, chosen.reference_column == "reference_hidden")
    _check_not_in_vain(args, chosen)
    if chosen.looks_ahead():
        _check_look_ahead(args)
    chosen.check_arguments(args, chosen=True)


def _check_without_cuda(args: argparse.Namespace) -> None:
    if args.cross_entropy_impl == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(
            "--cross-entropy-impl triton needs CUDA, and there is none; use 'auto' or 'torch' "
            "(the environment variable TRITON_INTERPRET=1 runs the kernels on the CPU, slowly, to test them)"
        )
    if args.profile and not args.use_pytorch_profiler:
        raise UserError(
            "--profile without CUDA: the profiler is CUDA's (nsys); pass --use-pytorch-profiler too, or leave it out"
        )
    if args.async_save:
        raise UserError(
            "--async-save with --use-persistent-ckpt-worker: without CUDA Megatron 0.19.2 waits for its worker "
            "forever; leave both out (ASYNC_SAVE=0 of the job scripts)"
        )


def _check_not_in_vain(args: argparse.Namespace, chosen: type[Objective]) -> None:
    """Refuse a reference that the objective does not read: the run would be next-token prediction without a word."""
    if args.reference_load is not None and not chosen.needs_reference:
        raise UserError(
            f"--reference-load {args.reference_load} with --objective {args.objective}, which reads no reference; give "
            "--objective remit (or another with a reference), or leave --reference-load out"
        )
    if args.skip_train and chosen.looks_ahead():
        raise UserError(
            f"--skip-train with --objective {args.objective}: evaluation is next-token prediction and reads no "
            "reference; leave --objective and the reference's flags out"
        )


def check_tokenizer(args: argparse.Namespace, tokenizer: Any, model: str) -> None:
    """Refuse a tokenizer (Megatron's object) that does not fit the model or the objective.

    ``args.remit_vocab_size`` is the number of embedding rows, ``model`` where they are.

    Raises:
        UserError: it has more tokens than the model has rows, or the objective cannot work with it.
    """
    if tokenizer.vocab_size > args.remit_vocab_size:
        raise UserError(
            f"--tokenizer-model {args.tokenizer_model} has {tokenizer.vocab_size} tokens, but {model} has "
            f"{args.remit_vocab_size} embedding rows; use the tokenizer of that model"
        )
    objective_class(args.objective).check_tokenizer(args, tokenizer)


def _check_look_ahead(args: argparse.Namespace) -> None:
    if scores_ahead(args) and args.reference_load is None:
        raise UserError(
            f"--objective {args.objective} needs a reference: give --reference-load DIR (tools/import_hf.py makes one)"
        )
    if args.cuda_graph_impl != "none":
        raise UserError(
            f"--cuda-graph-impl {args.cuda_graph_impl} with --objective {args.objective}: Megatron captures its graphs "
            "in the first passes that it sees, which come before the step; use 'none'"
        )
    for flag, value in (
        ("--rampup-batch-size", args.rampup_batch_size),
        ("--step-batch-size-schedule", args.step_batch_size_schedule),
        ("--decrease-batch-size-if-needed", args.decrease_batch_size_if_needed or None),
    ):
        if value is not None:
            raise UserError(
                f"{flag} is not supported with --objective {args.objective}; give one --global-batch-size that divides "
                "over the ranks"
            )
    if args.defer_embedding_wgrad_compute:
        raise UserError(
            f"--defer-embedding-wgrad-compute is not supported with --objective {args.objective}: the reference's "
            "passes would join the deferred work; leave the flag out"
        )
    if scores_ahead(args) or scores_base_ahead(args):
        _check_reference_micro_batch(args)


def _check_reference_micro_batch(args: argparse.Namespace) -> None:
    if args.reference_micro_batch_size is None:
        args.reference_micro_batch_size = args.micro_batch_size
    size = args.reference_micro_batch_size
    sequences = args.global_batch_size // args.data_parallel_size
    if size < 1 or sequences % size:
        raise UserError(
            f"--reference-micro-batch-size {size} does not divide the {sequences} sequences that each data-parallel "
            f"rank reads per step (--global-batch-size {args.global_batch_size} over {args.data_parallel_size} ranks)"
        )
    stages = args.pipeline_model_parallel_size
    if args.virtual_pipeline_model_parallel_size and (sequences // size) % stages:
        raise UserError(
            f"--reference-micro-batch-size {size} gives {sequences // size} reference microbatches per step; the "
            f"interleaved schedule needs a multiple of the {stages} pipeline stages"
        )
