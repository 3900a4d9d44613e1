"""Whether a model divides over a run's ranks, in one line that names the flag: for policy and reference, in the plan
and in training alike.

Megatron asserts most of it too, later: one_line.py gives what is not foreseen here the flags' names.
"""

import argparse

from megatron_remit.errors import UserError

_TP, _PP, _CP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size", "--context-parallel-size"
_ETP, _EP = "--expert-tensor-parallel-size", "--expert-model-parallel-size"


def replicas(args: argparse.Namespace) -> int:
    """How many copies of the model the run's ``args.world_size`` ranks hold. ``args`` may be those before Megatron's
    validation.

    Raises:
        UserError: the layout does not divide the ranks.
    """
    tp_size, pp_size, world = args.tensor_model_parallel_size, args.pipeline_model_parallel_size, args.world_size
    model = tp_size * pp_size * args.context_parallel_size
    if world % model:
        raise UserError(
            f"{_TP} {tp_size} x {_PP} {pp_size} x {_CP} {args.context_parallel_size} = {model} does not divide the "
            f"{world} GPUs (ranks) of the run; change one of them"
        )
    experts = (args.expert_tensor_parallel_size or tp_size) * args.expert_model_parallel_size * pp_size
    if args.expert_model_parallel_size > 1 and world % experts:
        raise UserError(
            f"{_EP} {args.expert_model_parallel_size} x {_ETP} {args.expert_tensor_parallel_size or tp_size} x {_PP} "
            f"{pp_size} = {experts} does not divide the {world} GPUs (ranks) of the run; change one of them"
        )
    return world // model


def check_step(args: argparse.Namespace, flag: str, size: int) -> None:
    """Check that a step divides into microbatches of ``size`` rows, the value of ``flag``, on each replica.

    Raises:
        UserError: it does not.
    """
    count = replicas(args)
    if args.global_batch_size is not None and args.global_batch_size % (size * count):
        raise UserError(
            f"--global-batch-size {args.global_batch_size} does not divide by {flag} {size} x the {count} replicas of "
            "the model (data-parallel ranks); change one of them"
        )


def check_divides(args: argparse.Namespace, model: str) -> None:
    """Check the model that ``args`` describe, of the folder or flag ``model``, against the layout in ``args``.

    The arguments may be those before Megatron's validation: nothing that it derives is read.

    Raises:
        UserError: heads, query groups, feed-forward units, experts or layers do not divide, or the sequence does not.
    """
    if args.num_attention_heads is None or args.seq_length is None:
        return  # Megatron asks for them by name
    tp_size, experts = args.tensor_model_parallel_size, args.num_experts
    groups = args.num_query_groups if args.group_query_attention else args.num_attention_heads
    if groups % tp_size and tp_size % groups:
        raise _does_not_divide(model, groups, "groups of query heads", _TP, tp_size)
    divided = [
        (args.num_attention_heads, "attention heads", _TP, tp_size),
        (args.ffn_hidden_size, "feed-forward units", _TP, tp_size),
        (args.padded_vocab_size, "rows of the padded vocabulary", _TP, tp_size),
    ]
    if experts is not None:
        expert_tp = args.expert_tensor_parallel_size or tp_size
        divided += [
            (experts, "experts", _EP, args.expert_model_parallel_size),
            (args.moe_ffn_hidden_size, "feed-forward units of an expert", _ETP, expert_tp),
        ]
    elif args.expert_model_parallel_size > 1:
        raise UserError(f"{_EP} {args.expert_model_parallel_size}: {model} has no experts; leave the flag out")
    for size, part, flag, ranks in divided:
        if size is not None and size % ranks:
            raise _does_not_divide(model, size, part, flag, ranks)
    _check_layers(args, model)
    _check_sequence(args)


def _does_not_divide(model: str, size: int, part: str, flag: str, ranks: int) -> UserError:
    return UserError(f"{model}: its {size} {part} do not divide over {flag} {ranks}; change that or use another model")


def _check_sequence(args: argparse.Namespace) -> None:
    length, cp_size, tp_size = args.seq_length, args.context_parallel_size, args.tensor_model_parallel_size
    # Each rank has a part from the front and its mirror image from the back: causal attention costs all the same.
    if cp_size > 1 and length % (2 * cp_size):
        raise UserError(f"--seq-length {length} does not divide by 2 x {_CP} {cp_size}; change one of them")
    if args.sequence_parallel and length // cp_size % tp_size:
        raise UserError(
            f"--seq-length {length} (over {_CP} {cp_size}) does not divide by {_TP} {tp_size}, as --sequence-parallel "
            "needs; change one of them"
        )


def _check_layers(args: argparse.Namespace, model: str) -> None:
    """As ``validate_args`` and ``TransformerConfig`` of Megatron 0.19.2; a pipeline layout is left to them."""
    if args.pipeline_model_parallel_layout is not None:
        return
    if args.pipeline_model_parallel_size == 1 and args.num_layers_per_virtual_pipeline_stage is not None:
        raise UserError(
            f"--num-layers-per-virtual-pipeline-stage {args.num_layers_per_virtual_pipeline_stage} with {_PP} 1: there "
            "is one stage, and nothing to interleave; leave the flag out"
        )
    stages, chunks = args.pipeline_model_parallel_size, args.num_virtual_stages_per_pipeline_rank or 1
    # Embedding and loss may count as a layer each.
    extra = int(bool(args.account_for_embedding_in_pipeline_split)) + int(bool(args.account_for_loss_in_pipeline_split))
    layers = args.num_layers + extra
    named = f"{model}: its {args.num_layers} layers" + (f" (and {extra} for embedding and loss)" if extra else "")
    ends = [
        (flag, count)
        for flag, count in (
            ("--decoder-first-pipeline-num-layers", args.decoder_first_pipeline_num_layers),
            ("--decoder-last-pipeline-num-layers", args.decoder_last_pipeline_num_layers),
        )
        if count is not None
    ]
    middle, between = layers - sum(count for _, count in ends), stages - len(ends)
    given = "".join(f", {flag} {count}" for flag, count in ends)
    if between < 0 or middle < 0 or (middle % between if between else middle):
        raise UserError(f"{named} do not divide over {_PP} {stages}{given}; change that or use another model")
    per_chunk = args.num_layers_per_virtual_pipeline_stage
    if per_chunk is not None:
        if ends or layers // stages % per_chunk:
            raise UserError(
                f"{named} do not divide over {_PP} {stages}{given} in chunks of "
                f"--num-layers-per-virtual-pipeline-stage {per_chunk}; change one of them"
            )
        chunks = layers // stages // per_chunk
    for count in [*(count for _, count in ends), middle // between if between else 0]:
        if count % chunks:
            raise UserError(
                f"{named} do not divide over {_PP} {stages}{given} in --num-virtual-stages-per-pipeline-rank {chunks} "
                "chunks each; change one of them"
            )
