"""Writes what is watched, under ``remit/``, to TensorBoard and W&B, and the tokens to a file. On the last rank only.

Each scalar is written over steps and, as ``... vs tokens``, over the tokens that the run has read. A step's scalars go
into one event: one event for each would cost more than their sums.

All starts of a run are one W&B run. Megatron calls ``wandb.init`` without an id, with which each requeue would be a run
of its own.
"""

import argparse
import functools
import importlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary

from megatron_remit.artifacts import write_whole
from megatron_remit.errors import UserError
from megatron_remit.watch.sums import Histogram

PREFIX = "remit/"
TOKENS_FILE = "tokens.jsonl"
"""In ``--save``, next to ``run.json``. A resumed run appends; where a step is in it twice, the later lines count."""
RUN_ID_FILE = "wandb_run_id"
"""The W&B run's id, in ``--save`` too. The last rank writes it; ``run.json`` is the first rank's."""


class Output:
    """The places that a run writes to; each may be missing."""

    def __init__(self, tensorboard: Any, wandb: Any, folder: Path | None) -> None:
        """``tensorboard`` is a ``SummaryWriter``, ``wandb`` the module after ``init``, as Megatron has them."""
        self._tensorboard = tensorboard
        self._wandb = wandb
        self._folder = folder
        if wandb is not None:
            wandb.define_metric(f"{PREFIX}tokens")
            wandb.define_metric(f"{PREFIX}*", step_metric=f"{PREFIX}tokens")

    def scalars(self, values: Mapping[str, float], step: int, tokens: int) -> None:
        """Write means by tag; ``tokens`` are those that the run has read."""
        if self._tensorboard is not None:
            for suffix, place in (("", step), (" vs tokens", tokens)):
                listed = [
                    Summary.Value(tag=f"{PREFIX}{name}{suffix}", simple_value=value) for name, value in values.items()
                ]
                self._tensorboard.file_writer.add_summary(Summary(value=listed), place)
        if self._wandb is not None:
            named = {f"{PREFIX}{name}": value for name, value in values.items()}
            self._wandb.log(named | {f"{PREFIX}tokens": tokens}, step)

    def histogram(self, name: str, found: Histogram, step: int, tokens: int) -> None:
        """Write a histogram; its outermost bins, which are open, are shown as wide as their neighbours."""
        tag, count = f"{PREFIX}histogram/{name}", sum(found.counts)
        if count == 0:
            return
        width = found.edges[1] - found.edges[0]
        limits = [*found.edges, found.edges[-1] + width]
        if self._tensorboard is not None:
            self._tensorboard.add_histogram_raw(
                tag, limits[0] - width, limits[-1], count, found.total, found.squares, limits, found.counts, step
            )
        if self._wandb is not None:
            # W&B takes at most 512 bins.
            drawn = self._wandb.Histogram(np_histogram=(found.counts, [limits[0] - width, *limits]))
            self._wandb.log({tag: drawn, f"{PREFIX}tokens": tokens}, step)

    def tokens(self, records: Sequence[Mapping[str, Any]], step: int, tokens: int) -> None:
        """Append the records of a step to the file, and show them as a table."""
        if self._folder is not None:
            lines = [
                json.dumps({"step": step, "tokens": tokens} | dict(record), ensure_ascii=False) for record in records
            ]
            self._folder.mkdir(parents=True, exist_ok=True)
            # One write: a killed process leaves whole steps.
            descriptor = os.open(self._folder / TOKENS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(descriptor, "".join(line + "\n" for line in lines).encode())
            finally:
                os.close(descriptor)
        if self._tensorboard is not None:
            for direction in ("up", "down"):
                chosen = [record for record in records if record["direction"] == direction]
                self._tensorboard.add_text(f"{PREFIX}tokens {direction}", _table(chosen), step)

    def warning(self, text: str, step: int) -> None:
        """Show a warning where the curves are."""
        if self._tensorboard is not None:
            self._tensorboard.add_text(f"{PREFIX}warnings", text, step)


def _table(records: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown."""
    lines = ["| weight | delta | nll | source | text |", "|---|---|---|---|---|"]
    for record in records:
        delta = "" if record["delta"] is None else f"{record['delta']:.3f}"
        before, token, after = (_cell(record[name]) for name in ("before", "token", "after"))
        lines.append(
            f"| {record['weight']:.3f} | {delta} | {record['nll']:.3f} | {_cell(record['source'] or '')} "
            f"| {before} **[{token}]** {after} |"
        )
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "⏎").replace("<", "&lt;")


def keep_run_id(args: argparse.Namespace) -> None:
    """Before Megatron calls ``wandb.init``: let it go on with the W&B run of ``--save``, or begin one.

    A ``WANDB_RUN_ID`` of the user wins. The id is not put there: children of this process would inherit it.

    Raises:
        UserError: the file cannot be read or written.
    """
    if not args.wandb_project or args.save is None or args.rank != args.world_size - 1:
        return
    if "WANDB_RUN_ID" in os.environ:
        return
    wandb: Any = importlib.import_module("wandb")
    resume = os.environ.get("WANDB_RESUME", "allow")
    wandb.init = functools.partial(wandb.init, id=_run_id(Path(args.save)), resume=resume)


def _run_id(folder: Path) -> str:
    path = folder / RUN_ID_FILE
    try:
        if path.is_file():
            found = path.read_text(encoding="utf-8").strip()
            if not found.isalnum():
                raise UserError(f"{path}: {found!r} is no id of a W&B run; delete the file to begin a new one")
            return found
        folder.mkdir(parents=True, exist_ok=True)
        made = secrets.token_hex(4)
        write_whole(path, made + "\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; --wandb-project keeps the run's id there") from None
    return made
