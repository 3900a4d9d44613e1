"""What a step reports in addition to Megatron's own figures: the objective's, throughput, the reference's share."""

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from megatron.training import get_args, print_rank_last
from torch import Tensor

from megatron_remit.objectives.registry import current_objective
from megatron_remit.scoring.ahead import clock
from megatron_remit.watch.run import current_watch


def with_step_metrics(train_step: Callable[..., tuple]) -> Callable[..., tuple]:
    """Wrap Megatron's ``train_step``: its first result, the losses of the last stage, gains

    * what the objective makes of its means (:meth:`Objective.finish_report`; ReMiT: ``weight std``);
    * ``tokens per second``: tokens of the global batch over the step's wall-clock seconds;
    * ``reference share``: the part of those seconds that scoring ahead took, in [0, 1] (with a reference only).

    Megatron then writes them to stdout, TensorBoard and W&B with the losses.
    """

    @functools.wraps(train_step)
    def call(*args: Any, **kwargs: Any) -> tuple:
        start = time.perf_counter()
        result = train_step(*args, **kwargs)
        losses = result[0]
        if losses:
            # The optimizer has read the gradient norm on the host, so the GPU has ended the step.
            _add(losses, time.perf_counter() - start)
            current_watch().end_step(next(iter(losses.values())).device)
        return result

    return call


def _add(losses: dict[str, Tensor], seconds: float) -> None:
    options = get_args()
    objective = current_objective()
    objective.finish_report(losses)
    like = next(iter(losses.values()))
    if objective.needs_reference:
        losses["reference share"] = torch.full_like(like, clock.reference_seconds() / seconds)
    tokens = options.global_batch_size * options.seq_length
    losses["tokens per second"] = torch.full_like(like, tokens / seconds)


def with_watched_figures(training_log: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Megatron's ``training_log``: what is watched (:mod:`megatron_remit.watch`) is written with its figures."""

    @functools.wraps(training_log)
    def call(
        losses: dict[str, Tensor], total: Any, rate: float | None, iteration: int, *rest: Any, **named: Any
    ) -> Any:
        result = training_log(losses, total, rate, iteration, *rest, **named)
        current_watch().log(losses, rate, iteration)
        return result

    return call


def with_negative_means(training_log: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Megatron's ``training_log``, whose line on stdout leaves out negative values: print those of the
    last step then."""

    @functools.wraps(training_log)
    def call(loss_dict: dict[str, Tensor], total: Any, rate: Any, iteration: int, *rest: Any, **kwargs: Any) -> Any:
        result = training_log(loss_dict, total, rate, iteration, *rest, **kwargs)
        if iteration % get_args().log_interval == 0:
            for name, value in loss_dict.items():
                if value.item() < 0:
                    print_rank_last(f" iteration {iteration:8d} | {name}: {value.item():.6E} |")
        return result

    return call
