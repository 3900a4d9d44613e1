"""What this process watches of its run: collects in each microbatch, reduces after each step, writes with the log."""

import argparse
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, cast

import torch
from megatron.core import mpu
from megatron.training import get_args, get_tensorboard_writer, get_tokenizer, get_wandb_writer, print_rank_last
from megatron.training.utils import get_blend_and_blend_per_split
from torch import Tensor

from megatron_remit.data.batch import Batch
from megatron_remit.objectives.base import context_parallel_group
from megatron_remit.objectives.registry import current_objective
from megatron_remit.watch.alarm import Alarm
from megatron_remit.watch.output import Output
from megatron_remit.watch.sums import StepFigures, StepSums
from megatron_remit.watch.tokens import ExtremeTokens, described

# Means of figures per token, by their name in the log.
_TAGS = {
    "nll": "lm loss",
    "weight": "weight mean",
    "delta": "delta mean",
    "clipped": "clipped share",
    "kept": "kept share",
}


class Watch:
    """On every rank of the last pipeline stage; the last rank of the job writes."""

    def __init__(self, args: Any) -> None:
        self._args = args
        self._writes = bool(args.tensorboard_dir or args.wandb_project)
        self._sources = blended_sources(args) if self._writes and args.watch_sources else []
        self._sums = StepSums(len(self._sources))
        self._extremes = ExtremeTokens()
        self._weighted = False
        self._step: StepFigures | None = None
        self._tokens: tuple[Tensor, Tensor] | None = None
        self._output: Output | None = None
        compared = current_objective().needs_reference and not current_objective().needs_base
        self._alarm = Alarm(args.watch_least_std, args.watch_patience, compared)

    def collect(self, batch: Batch) -> None:
        """Take what the objective has left in a microbatch (:func:`megatron_remit.objectives.base.keep_figures`)."""
        figures_BS = cast(dict, batch).pop("figures", None)
        if figures_BS is None:
            return
        step, first = self._args.curr_iteration + 1, mpu.get_tensor_model_parallel_rank() == 0
        self._weighted = "weight" in figures_BS
        mask_BS, source_B = batch["loss_mask"], batch.get("source")
        if self._is_logged(step) or self._has_histograms(step):
            self._sums.add(figures_BS, mask_BS, source_B, first, self._has_histograms(step))
        if first and self._has_tokens(step):
            self._extremes.add(
                batch["labels"], mask_BS, figures_BS, batch["sample"], source_B, context_parallel_group()
            )

    def end_step(self, device: torch.device) -> None:
        """Reduce over the ranks that compute a loss, which must all call it; ``device`` holds the loss."""
        step, group = self._args.curr_iteration + 1, mpu.get_tensor_and_data_parallel_group(with_context_parallel=True)
        self._step = self._sums.finish(group)
        self._tokens = None
        if self._has_tokens(step):
            first = mpu.get_tensor_model_parallel_rank() == 0
            self._tokens = self._extremes.finish(first, group, device)

    def log(self, losses: Mapping[str, Tensor], rate: float | None, iteration: int) -> None:
        """Write the step's figures, ``losses`` being Megatron's means, and say what is wrong with them."""
        if not losses or self._args.rank != self._args.world_size - 1:
            return
        logs_line = iteration % self._args.log_interval == 0
        if not (logs_line or self._step or self._tokens or self._is_logged(iteration)):
            return
        # One read of the device for all of them.
        means = torch.stack([value.detach().float().reshape(()) for value in losses.values()]).tolist()
        values = dict(zip(losses, means, strict=True))
        if self._output is None:
            folder = None if self._args.save is None else Path(self._args.save)
            self._output = Output(get_tensorboard_writer(), get_wandb_writer(), folder)
        tokens = self._args.consumed_train_samples * self._args.seq_length
        if self._is_logged(iteration):
            self._output.scalars(values | self._more(values, rate), iteration, tokens)
        for name, histogram in (self._step.histograms if self._step else {}).items():
            self._output.histogram(name, histogram, iteration, tokens)
        if self._tokens is not None:
            decode = functools.partial(_decode, get_tokenizer())
            up, down = (
                described(rows, name, self._sources, decode)
                for name, rows in zip(("up", "down"), self._tokens, strict=True)
            )
            self._output.tokens([*up, *down], iteration, tokens)
        for text in self._alarm.warnings(values) if logs_line else []:
            print_rank_last(f"warning: step {iteration}: {text}")
            self._output.warning(text, iteration)

    def _more(self, values: Mapping[str, float], rate: float | None) -> dict[str, float]:
        """What is logged under ``remit/`` alone."""
        found: dict[str, float] = {}
        if rate is not None and "weight mean" in values:
            found["effective learning-rate"] = rate * values["weight mean"]
        if self._step is None or not self._step.tokens_by_source:
            return found
        everything = sum(self._step.tokens_by_source)
        for place, source in enumerate(self._sources):
            count = self._step.tokens_by_source[place]
            found[f"source/{source}/share"] = count / everything if everything else 0.0
            for name, by_source in self._step.by_source.items() if count else ():
                found[f"source/{source}/{_TAGS[name]}"] = by_source[place]
        return found

    def _is_logged(self, step: int) -> bool:
        return self._writes and step % self._args.tensorboard_log_interval == 0

    def _has_histograms(self, step: int) -> bool:
        every = self._args.watch_histogram_interval
        return self._writes and every > 0 and step % every == 0

    def _has_tokens(self, step: int) -> bool:
        every = self._args.watch_token_interval
        return self._weighted and every > 0 and step % every == 0 and (self._writes or self._args.save is not None)


@functools.cache
def current_watch() -> Watch:
    """The run's, made at the first call from Megatron's global arguments."""
    return Watch(get_args())


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.detokenize(ids) if ids else ""


def blended_sources(args: argparse.Namespace) -> list[str]:
    """The names of the training set's corpora; none if it has only one, whose samples carry no ``dataset_id``."""
    if args.mock_data:
        return []
    blend, per_split = get_blend_and_blend_per_split(args)
    chosen = blend if per_split is None else per_split[0]
    prefixes = [] if chosen is None else chosen[0]
    return source_names(prefixes) if len(prefixes) > 1 else []


def source_names(prefixes: Sequence[str]) -> list[str]:
    """The shortest ends of the corpora's prefixes that tell them apart, as ``web`` and ``math`` for ``/data/web`` and
    ``/data/math``. A corpus that the blend has more than once is numbered, ``web#2``."""
    parts = [PurePath(prefix).parts for prefix in prefixes]
    different = set(parts)
    names: list[str] = []
    for own in parts:
        length = 1
        while length < len(own) and any(other != own and other[-length:] == own[-length:] for other in different):
            length += 1
        name = "/".join(own[-length:]).lstrip("/")
        earlier = sum(other == own for other in parts[: len(names)])
        names.append(f"{name}#{earlier + 1}" if earlier else name)
    return names
