"""A run that goes on from its own checkpoint: what must be as it was, and what Megatron cannot take up again.

Each of these shows in Megatron as an assertion while it loads, or not at all; here it is an error before that.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from megatron_remit.errors import UserError
from megatron_remit.megatron_flags import spelt
from megatron_remit.programs.identity import (
    check_allowed,
    check_same_run,
    model_started_from,
    run_identity,
    write_run_file,
)
from megatron_remit.reference.checkpoint import saved_arguments
from megatron_remit.trust.loading import existing, iteration_name

# What Megatron's scheduler compares with the checkpoint's values (``OptimizerParamScheduler.load_state_dict``).
_SCHEDULE = (
    *("lr", "min_lr", "lr_decay_style", "lr_warmup_iters", "lr_warmup_samples", "lr_warmup_fraction"),
    *("start_weight_decay", "end_weight_decay", "weight_decay_incr_style"),
)
_VIRTUAL = "virtual_pipeline_model_parallel_size"
# The distributed optimizer's state is stored as the ranks hold it: these sizes, and which layers are on which stage.
_MODEL_LAYOUT = (
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size"),
    *("expert_tensor_parallel_size", _VIRTUAL, "pipeline_model_parallel_layout"),
    *("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"),
    *("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split"),
)


def check_run(args: argparse.Namespace) -> int:
    """Compare a resumed run with its checkpoint, on rank 0. The corpora are checked by then.

    ``args.remit_run`` becomes the run's identity, and so a part of its checkpoints.

    Returns:
        The step that the run goes on from; 0 for a new run.

    Raises:
        UserError: what has changed, or cannot be resumed, by name.
    """
    _check_optimizer_format(args)
    if args.rank != 0:
        return 0
    identity = run_identity(args)
    check_allowed(args.allow_changed, identity)
    earlier, step = earlier_run(args)
    _check_not_over_another_run(args)
    if earlier is None:
        base = model_started_from(args)
    else:
        saved_identity = getattr(earlier, "remit_run", None) or {}
        check_same_run(identity, saved_identity, args.allow_changed, f"--load {args.load}")
        check_state(args, earlier)
        base = saved_identity.get("base")
    args.remit_run = identity | {"base": base}
    return step


def record_start(args: argparse.Namespace, step: int) -> None:
    """Add this start, from ``step``, to the record in ``--save``, on rank 0, once nothing is left to be refused.

    Raises:
        UserError: the record that is there is damaged.
    """
    if args.rank == 0 and args.save is not None:
        write_run_file(args, args.remit_run, step)


def earlier_run(args: argparse.Namespace) -> tuple[argparse.Namespace | None, int]:
    """The arguments in the checkpoint that the run goes on from and its step; None and 0 for a new run."""
    if args.load is None or args.finetune:
        return None, 0
    # --ckpt-step 0 is Megatron's word for the latest.
    name = iteration_name(Path(args.load), args.ckpt_step or None)
    if name is None or not name.startswith("iter_"):
        return None, 0
    return saved_arguments(existing(Path(args.load) / name)), int(name.removeprefix("iter_"))


def _check_not_over_another_run(args: argparse.Namespace) -> None:
    """Refuse ``--save`` where a run's checkpoints are and this start does not go on from that folder: its own would
    take their place, step by step."""
    if args.save is None or args.skip_train:
        return
    found = iteration_name(Path(args.save), None)
    same = args.load is not None and Path(args.load).resolve() == Path(args.save).resolve()
    if found is None or (same and not args.finetune):
        return
    start = "--finetune starts anew" if args.finetune else f"--load {args.load}" if args.load else "without --load"
    raise UserError(
        f"--save {args.save}: holds a run's checkpoints, the last of them {found}, which this start ({start}) would "
        f"write over. To go on with that run pass --load {args.save} without --finetune; for a new one give another "
        "folder"
    )


def check_state(args: argparse.Namespace, earlier: argparse.Namespace) -> None:
    """Check what the run is to take up: the states of optimizer, schedule and random numbers.

    Raises:
        UserError: the checkpoint does not have them, or has those of other flags.
    """
    where = f"--load {args.load}"
    if not args.no_load_optim:
        if getattr(earlier, "no_save_optim", False):
            raise UserError(
                f"{where}: was saved with --no-save-optim, so there is no optimizer to go on with; pass "
                "--no-load-optim --no-load-rng to go on with a fresh one"
            )
        _check_optimizer(args, earlier, where)
        _check_schedule(args, earlier, where)
        check_layout(args, earlier, where)
    if not args.no_load_rng and getattr(earlier, "no_save_rng", False):
        raise UserError(
            f"{where}: was saved with --no-save-rng, so there are no random states to go on with; pass --no-load-rng "
            "to go on with fresh ones"
        )


def _check_optimizer(args: argparse.Namespace, earlier: argparse.Namespace, where: str) -> None:
    before = getattr(earlier, "optimizer", None)
    if before not in (None, args.optimizer):
        raise UserError(
            f"--optimizer {args.optimizer}, but the run in {where} was trained with {before}, and its state is that "
            "one's. Give the earlier value, or pass --no-load-optim --no-load-rng to go on with a fresh optimizer"
        )
    if args.optimizer == "sgd":
        raise UserError(
            f"{where}: --optimizer sgd, whose state Megatron 0.19.2 saves and cannot load; pass --no-load-optim "
            "--no-load-rng to go on without its momentum, or train with adam"
        )


def _check_schedule(args: argparse.Namespace, earlier: argparse.Namespace, where: str) -> None:
    if args.override_opt_param_scheduler or args.use_checkpoint_opt_param_scheduler:
        return
    for name, before, now in _schedule_changes(args, earlier):
        raise UserError(
            f"{spelt(name)} {now}, but the run in {where} was started with {before}, and the learning rate follows it. "
            "Pass --override-opt_param-scheduler to follow the new flags from here on, "
            "--use-checkpoint-opt_param-scheduler to stay with the earlier ones, or give the earlier value"
        )


def _schedule_changes(args: argparse.Namespace, earlier: argparse.Namespace) -> Iterator[tuple[str, object, object]]:
    """Name, earlier and present value."""
    length, decay = ("train_samples", "lr_decay_samples") if args.train_samples else ("train_iters", "lr_decay_iters")
    # Megatron stores the decay's length; without one of its own it is that of the run.
    name = length if getattr(args, decay) is None else decay
    found = [(name, getattr(earlier, decay, None), getattr(args, name))]
    if length == "train_iters":
        found.append(("global_batch_size", getattr(earlier, "global_batch_size", None), args.global_batch_size))
    found += [(name, getattr(earlier, name, None), getattr(args, name)) for name in _SCHEDULE if hasattr(earlier, name)]
    yield from (one for one in found if one[1] != one[2])


def check_layout(args: argparse.Namespace, earlier: argparse.Namespace, where: str) -> None:
    """Refuse a model-parallel layout that the state of the distributed optimizer does not fit.

    Raises:
        UserError: names what has changed, and both values.
    """
    if not args.use_distributed_optimizer or args.dist_ckpt_optim_fully_reshardable:
        return
    for name in _MODEL_LAYOUT:
        now = getattr(args, name)
        before = getattr(earlier, name, now)
        if before != now:
            raise UserError(
                f"{_layout(name, now)}, but the run in {where} was saved with {_layout(name, before)}: the distributed "
                "optimizer's state cannot be loaded in another model-parallel layout. Give the earlier value (only the "
                "number of nodes may change), or pass --no-load-optim --no-load-rng to go on with a fresh optimizer"
            )


def _layout(name: str, value: object) -> str:
    # Megatron derives it from one of three flags, and has None for 1.
    if name == _VIRTUAL:
        return f"{value or 1} model chunks on each pipeline stage (--num-layers-per-virtual-pipeline-stage or its like)"
    return f"{spelt(name)} {value}"


def _check_optimizer_format(args: argparse.Namespace) -> None:
    if args.dist_ckpt_optim_fully_reshardable and args.use_distributed_optimizer:
        raise UserError(
            "--dist-ckpt-optim-fully-reshardable: Megatron 0.19.2 writes zeros for the optimizer's state of all "
            "gradient buckets but the first (mended in its #5077); leave the flag out"
        )
