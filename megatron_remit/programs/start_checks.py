"""What would end a run only after its first step, or without a word, looked at before it: what it reads and writes."""

import argparse
import importlib.util
import os
from pathlib import Path

from megatron.core.datasets.blended_megatron_dataset_config import parse_and_normalize_split
from megatron.training.utils import get_blend_and_blend_per_split

from megatron_remit.artifacts import check_writable
from megatron_remit.errors import UserError, note
from megatron_remit.megatron_flags import given, spelt
from megatron_remit.one_line import in_one_line
from megatron_remit.score_store.manifest import check_free
from megatron_remit.trust.loading import RELEASE, TRACKER, iteration_name


def check_reads_and_writes(args: argparse.Namespace) -> None:
    """Check ``--load``, the folders to write to and the validation data; an evaluation that nobody asked for is
    switched off.

    Raises:
        UserError: names the flag, what was found and what to do.
    """
    _check_load(args)
    _check_save(args)
    _check_late(args)
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        for flag in ("save", "data_cache_path", "tensorboard_dir"):
            folder = getattr(args, flag)
            if folder is not None:
                check_writable(f"--{flag.replace('_', '-')}", Path(folder))
        if args.score_store_write:
            check_writable("--score-store", args.score_store)
            check_free(args.score_store)
    with in_one_line(args, "data_args_path", "per_split_data_args_path"):
        get_blend_and_blend_per_split(args)
    _check_validation(args)


def _check_load(args: argparse.Namespace) -> None:
    """Megatron ends with exit status 0 here, which a job script takes for success."""
    if args.pretrained_checkpoint is not None:
        _check_pretrained(args)
        return
    if args.load is None or not args.exit_on_missing_checkpoint:
        return
    if not (Path(args.load) / TRACKER).is_file():
        raise UserError(
            f"--load {args.load} with --exit-on-missing-checkpoint: the folder holds no checkpoint "
            f"({TRACKER} is not there); give one that tools/import_hf.py or a run's --save wrote"
        )


def _check_late(args: argparse.Namespace) -> None:
    """What Megatron opens and imports only once a record of the run and its stores are made."""
    for name in ("nccl_communicator_config_path", "tp_comm_overlap_cfg"):
        file = getattr(args, name)
        if file is not None and not Path(file).is_file():
            raise UserError(f"{spelt(name)} {file}: no such file; expected one in YAML")
    if args.tp_comm_overlap and importlib.util.find_spec("transformer_engine") is None:
        raise UserError(
            "--tp-comm-overlap needs Transformer Engine, which is not installed; install it (constraints-gpu.txt has "
            "versions that fit), or leave the flag out"
        )
    if args.enable_ft_package and importlib.util.find_spec("nvidia_resiliency_ext") is None:
        raise UserError(
            "--enable-ft-package needs NVIDIA's package nvidia-resiliency-ext, which is not installed; install it, or "
            "leave the flag out: the job scripts restart a run that hangs"
        )


def _check_pretrained(args: argparse.Namespace) -> None:
    """Megatron takes the model of ``--pretrained-checkpoint`` only where ``--load`` holds no checkpoint. A run on its
    way has no more need of it; any other would start from another model than the flag says."""
    holds = {
        root: root is not None and (Path(root) / TRACKER).is_file() for root in (args.pretrained_checkpoint, args.load)
    }
    if not any(holds.values()):
        raise UserError(
            f"--pretrained-checkpoint {args.pretrained_checkpoint}: the folder holds no checkpoint ({TRACKER} is not "
            "there), and neither does --load; give one that tools/import_hf.py or a run's --save wrote"
        )
    if not holds[args.load]:
        return
    if args.finetune or iteration_name(Path(args.load), None) == RELEASE:
        raise UserError(
            f"--pretrained-checkpoint {args.pretrained_checkpoint} with --load {args.load}, which holds a model too: "
            "Megatron would take that one; give only the one to start from"
        )
    if args.rank == 0:
        note(
            f"--pretrained-checkpoint {args.pretrained_checkpoint} is not read: the run goes on from its checkpoint in "
            f"--load {args.load}"
        )


def _check_save(args: argparse.Namespace) -> None:
    """A run's checkpoint beside an import would be what everybody finds there, as the base or the reference too."""
    if args.save is not None and Path(args.save).is_dir() and iteration_name(Path(args.save), None) == RELEASE:
        raise UserError(
            f"--save {args.save}: holds an imported model, which a checkpoint of this run would hide; give a folder of "
            "the run's own"
        )


def _check_validation(args: argparse.Namespace) -> None:
    """Megatron makes no data for a split without a share and evaluates on it all the same."""
    if args.multiple_validation_sets != args.full_validation:
        # One alone ends in a NotImplementedError, the other in a TypeError at the first evaluation.
        raise UserError(
            "--full-validation and --multiple-validation-sets work together only, in Megatron 0.19.2, for one set too; "
            "pass both or neither"
        )
    if args.full_validation:
        _set_whole_validation(args)
    if not (args.full_validation or args.eval_iters > 0) or args.mock_data or _has_validation(args):
        return
    if not args.full_validation and "eval_iters" not in given():
        if args.rank == 0:
            note(f"--split {args.split} leaves nothing for validation, so there is none")
        args.eval_iters = 0
        return
    flag = "--full-validation" if args.full_validation else f"--eval-iters {args.eval_iters}"
    raise UserError(
        f"{flag}, but the data flags (--split {args.split}) leave nothing for validation; give it a share or "
        "--valid-data-path, or pass --eval-iters 0"
    )


def _set_whole_validation(args: argparse.Namespace) -> None:
    """Megatron reads whole validation sets row by row, whatever the batch size, and repeats them where an evaluation
    step takes more than a row from each rank."""
    if args.eval_micro_batch_size != 1 and "eval_micro_batch_size" in given():
        raise UserError(
            f"--eval-micro-batch-size {args.eval_micro_batch_size} with --full-validation: Megatron reads whole "
            "validation sets row by row; leave the flag out"
        )
    if args.virtual_pipeline_model_parallel_size is not None:
        raise UserError(
            "--full-validation with virtual pipeline stages: Megatron 0.19.2 mixes up the sets of model chunks; use "
            "--eval-iters"
        )
    args.eval_micro_batch_size, args.eval_global_batch_size = 1, args.data_parallel_size


def _has_validation(args: argparse.Namespace) -> bool:
    _, per_split = get_blend_and_blend_per_split(args)
    if per_split is not None:
        return per_split[1] is not None
    return parse_and_normalize_split(args.split)[1] > 0
