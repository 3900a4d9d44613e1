"""The forward step that Megatron's training and evaluation loops call."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from megatron.core.utils import get_attr_wrapped_model
from megatron.training import get_args
from torch import Tensor
from torch.nn import Module

from megatron_remit.data.batch import Batch, get_batch
from megatron_remit.nll import run_model
from megatron_remit.objectives import OBJECTIVES, current_objective


def forward_step(
    data_iterator: Iterator[Any] | None, model: Module
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]]:
    """Megatron's forward-step contract for the policy: output tensor and loss function of the next microbatch.

    With a reference the iterator yields microbatches that score-ahead has read already; otherwise it is Megatron's
    own data iterator. Evaluation is next-token prediction, whatever the objective.
    """
    args = get_args()
    objective = current_objective() if model.training else OBJECTIVES["ntp"]
    if objective.needs_reference:
        batch: Batch = next(data_iterator)
    else:
        size = args.micro_batch_size if model.training else (args.eval_micro_batch_size or args.micro_batch_size)
        batch = get_batch(data_iterator, size, get_attr_wrapped_model(model, "vp_stage"))
    return run_model(batch, model, objective.policy_output(batch)), partial(objective.loss, batch)
