"""Every check that training makes of its flags and models, made without GPUs and before anything is imported.

Megatron validates the flags for as many ranks as the run will have, and builds the config of policy and reference.
"""

import argparse
import contextlib
import copy
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from megatron.training import arguments
from megatron.training.vocab_utils import calculate_padded_vocab_size

from megatron_remit import cpu, patches
from megatron_remit.argument_checks import check_arguments
from megatron_remit.arguments import add_remit_arguments
from megatron_remit.convert.families import read_config
from megatron_remit.errors import UserError
from megatron_remit.flag_values import check_stated, check_values
from megatron_remit.launch.activations import Placed
from megatron_remit.launch.memory import layers_per_stage
from megatron_remit.launch.parameters import read_model
from megatron_remit.layout import check_divides, check_step, replicas
from megatron_remit.model_arguments import NEUTRAL
from megatron_remit.objectives.registry import objective_class
from megatron_remit.reference.checkpoint import NOT_INHERITED, fit_experts, fit_to_layout
from megatron_remit.reference.fit import check_length
from megatron_remit.reference.precision import fit_precision
from megatron_remit.scoring.arguments import check_base, scores_ahead, scores_base_ahead
from megatron_remit.specs.native import gpt_config


@dataclass(frozen=True)
class Run:
    """The models of a run on its ranks."""

    policy: Placed
    frozen: dict[Path, Placed]
    """The models that score ahead, by the Hugging Face folder that their shape is from: reference, reference's base."""
    notes: list[str]
    """What could not be looked at, a sentence each."""


def place(base_hf: Path, reference_hf: Path | None, gpus: int, training: list[str]) -> Run:
    """Policy and frozen models on the ranks of the run that ``training`` describes.

    Raises:
        UserError: flags that the training program would refuse, or a model that does not fit the layout.
    """
    return place_parsed(parse(training), base_hf, reference_hf, gpus)


def place_parsed(policy: argparse.Namespace, base_hf: Path, reference_hf: Path | None, gpus: int) -> Run:
    """:func:`place` for flags that :func:`parse` has read. Changes ``policy``. Raises as :func:`place`."""
    check_base(policy)
    _set_layout(policy, gpus)
    check_microbatches(policy)
    set_shape(policy, base_hf)
    check_divides(policy, str(base_hf))
    if scores_ahead(policy):
        if reference_hf is None:
            raise UserError(
                f"--objective {policy.objective} needs --reference-hf, the Hugging Face folder of the reference"
            )
        policy.reference_load = policy.reference_load or reference_hf  # its import may not be there yet
    elif reference_hf is not None and not objective_class(policy.objective).needs_reference:
        raise UserError(
            f"--reference-hf {reference_hf} with --objective {policy.objective}, which reads no reference; give "
            "--objective remit (or another with a reference) among the flags of training, or leave --reference-hf out"
        )
    folders, notes = _frozen_folders(policy, reference_hf)
    # Megatron reports all that it sets.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments.validate_args(policy)
        check_arguments(policy)
        return Run(_placed(policy, base_hf), {hf: _place_frozen(policy, hf) for hf in folders}, notes)


def _frozen_folders(args: argparse.Namespace, reference_hf: Path | None) -> tuple[list[Path], list[str]]:
    """The folders of the models that score ahead in this run, and notes about those that have none."""
    folders = [reference_hf] if reference_hf is not None and scores_ahead(args) else []
    if not scores_base_ahead(args):
        return folders, []
    base = args.reference_base_load / "hf"
    if (base / "config.json").is_file():
        return [*folders, base], []
    return folders, [f"{base}/config.json is not there, so --reference-base-load is not counted"]


def _place_frozen(policy: argparse.Namespace, hf: Path) -> Placed:
    return _placed(frozen_arguments(policy, hf), hf)


def frozen_arguments(policy: argparse.Namespace, hf: Path) -> argparse.Namespace:
    """The run's arguments with the shape of the frozen model in ``hf``, as training would take it from its import.

    Raises:
        UserError: the model does not fit the run's layout.
    """
    own = copy.copy(policy)
    # A reference of another family has none of the policy's shape arguments.
    vars(own).update(NEUTRAL)
    set_shape(own, hf)
    # As in training: only the rows that the policy has are built.
    own.padded_vocab_size = policy.padded_vocab_size
    fit_precision(policy, own)
    fit_experts(policy, own, argparse.Namespace(), str(hf))
    fit_to_layout(policy, own, str(hf))
    vars(own).update(NOT_INHERITED)
    return own


def parse(training: list[str]) -> argparse.Namespace:
    """The flags of the training program, not yet validated. Raises UserError where one is missing."""
    cpu.install()
    patches.apply()
    parser = argparse.ArgumentParser(prog="flags of the training program", allow_abbrev=False)
    args = add_remit_arguments(arguments.add_megatron_arguments(parser), training).parse_args(training)
    args.rank = 0
    args.wandb_project = ""  # a plan is no run of W&B's
    check_values(args)
    check_stated(args)
    if args.reference_micro_batch_size is None:
        args.reference_micro_batch_size = args.micro_batch_size
    return args


def _set_layout(args: argparse.Namespace, gpus: int) -> None:
    args.world_size = gpus
    args.data_parallel_size = replicas(args)


def check_microbatches(args: argparse.Namespace) -> None:
    """Check that a step divides into microbatches. Raises UserError if it does not."""
    args._is_global_batch_size_explicitly_specified = args.global_batch_size is not None
    if args.global_batch_size is None:
        args.global_batch_size = args.micro_batch_size * args.data_parallel_size
    for flag, size in (
        ("--micro-batch-size", args.micro_batch_size),
        ("--reference-micro-batch-size", args.reference_micro_batch_size),
    ):
        check_step(args, flag, size)


def set_shape(args: argparse.Namespace, hf: Path) -> None:
    """The model in ``hf`` as an import and ``--use-checkpoint-args`` would give it to ``args``."""
    family, config = read_config(hf)
    for name, value in family.arguments(config).items():
        setattr(args, name, value)
    check_length(str(hf / "config.json"), args.max_position_embeddings, args.seq_length)
    if args.multi_latent_attention and args.rope_type == "rope":
        args.apply_rope_fusion = False  # as the program does after loading
    args.remit_vocab_size = config["vocab_size"]
    args.padded_vocab_size = calculate_padded_vocab_size(
        config["vocab_size"], args.make_vocab_size_divisible_by, args.tensor_model_parallel_size, logging_enabled=False
    )


def _placed(args: argparse.Namespace, hf: Path) -> Placed:
    return Placed(args, read_model(hf, args), layers_per_stage(args, gpt_config(args).transformer))
