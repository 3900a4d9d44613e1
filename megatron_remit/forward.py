"""The forward step that Megatron's training and evaluation loops call."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.utils import get_attr_wrapped_model
from megatron.training import get_args
from torch import Tensor
from torch.nn import Module

from megatron_remit.data.batch import Batch, get_batch
from megatron_remit.nll import run_model
from megatron_remit.objectives import current_objective, evaluation_objective
from megatron_remit.objectives.base import LossResult, Objective

_SPIKY_LOSS_FACTOR = 10


def forward_step(
    data_iterator: Iterator[Any] | None, model: Module
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]]:
    """Megatron's forward-step contract for the policy: output tensor and loss function of the next microbatch.

    With a reference the iterator yields microbatches that score-ahead has read already; otherwise it is Megatron's
    own data iterator. Evaluation is next-token prediction, whatever the objective.
    """
    args = get_args()
    objective = current_objective() if model.training else evaluation_objective()
    if objective.needs_reference:
        batch: Batch = next(data_iterator)
    else:
        size = args.micro_batch_size if model.training else (args.eval_micro_batch_size or args.micro_batch_size)
        vp_stage = get_attr_wrapped_model(model, "vp_stage")
        batch = get_batch(data_iterator, size, vp_stage, columns=objective.batch_columns)
    return run_model(batch, model, objective.policy_output(batch)), partial(_checked_loss, objective, batch)


def _checked_loss(objective: Objective, batch: Batch, output: Tensor) -> LossResult:
    result = objective.loss(batch, output)
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
