"""Training: ``torchrun -m megatron_remit.pretrain <Megatron flags> --objective remit --reference-load DIR``.

Megatron's own loop trains. This file only puts its parts together: arguments, datasets, the forward step, and the
reference that scores ahead of each step.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from megatron.core.enums import ModelType
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.utils import get_attr_wrapped_model
from megatron.training import get_args, pretrain
from megatron.training.argument_utils import pretrain_cfg_container_from_args
from torch import Tensor
from torch.nn import Module

from megatron_remit import patches
from megatron_remit.data.batch import Batch, get_batch
from megatron_remit.errors import UserError
from megatron_remit.nll import Vocabulary, run_model
from megatron_remit.objectives.base import LossResult, Objective
from megatron_remit.objectives.registry import current_objective, evaluation_objective, objective_class
from megatron_remit.one_line import in_one_line, until_first_step
from megatron_remit.programs.resume import check_run, record_start
from megatron_remit.programs.start import check, end_in_peace, parse_arguments, show_life
from megatron_remit.reference.checkpoint import BASE_FLAG, reference_arguments
from megatron_remit.reference.model import build_reference
from megatron_remit.scoring import session
from megatron_remit.scoring.ahead import Base
from megatron_remit.scoring.arguments import scores_ahead, scores_base_ahead
from megatron_remit.scoring.dataset import train_valid_test_datasets
from megatron_remit.specs.native import gpt_config
from megatron_remit.watch.run import current_watch

_SPIKY_LOSS_FACTOR = 10


def main() -> None:
    """Run training as the command line says. Raises UserError on bad input before the first step."""
    args = parse_arguments()
    check(args)
    if args.lr is None and not args.skip_train:
        raise UserError("--lr is not set; give the learning rate that the warm-up ends at")
    step = check_run(args)
    show_life(args)
    config = gpt_config(args)
    with in_one_line(args):
        container = pretrain_cfg_container_from_args(args, config)
    if objective_class(args.objective).looks_ahead():
        if args.score_store is not None and not session.makes_store(args):
            session.open_store(args, create=False)
        if args.score_store_base is not None:
            session.open_base_store(args)
        own = reference_arguments(args) if scores_ahead(args) else None
        base = reference_arguments(args, BASE_FLAG) if scores_base_ahead(args) else None
        config.post_wrap_hooks.append(partial(_add_references, own, base))
    # Called for each model chunk, of which the first has read the corpora.
    patches.once_data_stands(cache(partial(record_start, args, step)))
    try:
        with until_first_step(args):
            pretrain(container, train_valid_test_datasets, ModelType.encoder_or_decoder, forward_step)
    finally:
        end_in_peace(args)
        session.close()


def _add_references(
    reference_args: argparse.Namespace | None, base_args: argparse.Namespace | None, policy: list[Module]
) -> list[Module]:
    """Post-wrap hook of the policy's model config: the first moment at which the process groups stand.

    ``reference_args`` is None when every score comes from a store, or when there is no reference: none is built then.
    The same holds for ``base_args`` and the reference's base.
    """
    reference = [] if reference_args is None else build_reference(reference_args)
    base = None if base_args is None else Base(build_reference(base_args), Vocabulary.of_reference(base_args))
    patches.score_ahead_with(reference, base)
    return policy


def forward_step(data_iterator: Iterator[Any] | None, model: Module) -> tuple[Tensor, Callable[[Tensor], LossResult]]:
    """Megatron's forward-step contract for the policy: output tensor and loss function of the next microbatch.

    For an objective that looks ahead the iterator yields microbatches that were read before the step; otherwise it is
    Megatron's own data iterator. Evaluation is next-token prediction, whatever the objective.
    """
    args = get_args()
    objective = current_objective() if model.training else evaluation_objective()
    if objective.looks_ahead():
        batch: Batch = next(data_iterator)  # type: ignore[arg-type]  # every rank has the step's microbatches
    else:
        size = args.micro_batch_size if model.training else (args.eval_micro_batch_size or args.micro_batch_size)
        vp_stage = get_attr_wrapped_model(model, "vp_stage")
        batch = get_batch(data_iterator, size, vp_stage, columns=objective.batch_columns)
    loss = partial(_checked_loss, objective, batch, model.training)
    return run_model(batch, model, objective.policy_output(batch)), loss


def _checked_loss(objective: Objective, batch: Batch, training: bool, output: Tensor) -> LossResult:
    result = objective.loss(batch, output)
    if training:
        current_watch().collect(batch)
    _check_loss(result[0])
    return result


def _check_loss(loss: Tensor) -> None:
    """Hand the loss to Megatron's rerun state machine: it stops on NaN and infinity, and reports spikes when asked."""
    args = get_args()
    machine = get_rerun_state_machine()
    if args.check_for_nan_in_loss_and_grad:
        for kind, rejection in (("NaN", torch.isnan), ("Inf", torch.isinf)):
            machine.validate_result(
                result=loss,
                rejection_func=rejection,
                message=f"found {kind} in the local forward loss",
                tolerance=0.0,
                fatal=True,
            )
    if args.check_for_spiky_loss:
        machine.validate_result(
            result=loss,
            rejection_func=partial(machine.is_unexpectedly_large, threshold=_SPIKY_LOSS_FACTOR, context="loss"),
            message="Spiky loss",
            tolerance=0.0,
            fatal=False,
        )
