"""What makes a run this run: its data, its objective and its reference; written to run.json, kept in its checkpoints,
and compared when the run is resumed."""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing import check_is_distributed_checkpoint
from megatron.training.utils import get_blend_and_blend_per_split

from megatron_remit.artifacts import write_whole
from megatron_remit.data.corpus_files import corpus_digest
from megatron_remit.errors import UserError, note
from megatron_remit.objectives.registry import OBJECTIVES, objective_class
from megatron_remit.reference.checkpoint import checkpoint_folder, saved_arguments
from megatron_remit.reference.fingerprint import reference_fingerprint
from megatron_remit.score_store.manifest import read_manifest
from megatron_remit.trust.loading import existing, iteration_name
from megatron_remit.versions import machine, versions

FILE = "run.json"
FORMAT = 1
# Flags that decide which rows a run reads, in which order, and which of their tokens count.
_DATA_FLAGS = (
    "seed",
    "split",
    "row_seed",
    "dataloader_type",
    "seq_length",
    "eod_mask_loss",
    "reset_position_ids",
    "reset_attention_mask",
    "dataloader_inter_document_masking",
)

Identity = dict[str, Any]
"""Values of JSON by name. A name is a flag's, without dashes in front and with underscores."""


def run_identity(args: argparse.Namespace) -> Identity:
    """What must stay as it is from a run's first step to its last: rows and their order, objective, frozen models.

    The model's own shape is checked by loading it. Layout, batch size, length and learning rate may change.
    """
    objective = objective_class(args.objective)
    found: Identity = {name: getattr(args, name) for name in _DATA_FLAGS}
    found["corpora"] = None if args.mock_data else _corpora(args)
    found["objective"] = args.objective
    for name in _objective_flags(objective):
        found[name] = getattr(args, name)
    if objective.needs_reference:
        found["reference"] = _model(args.reference_load, args.score_store)
    if objective.needs_base:
        found["reference_base"] = _model(args.reference_base_load, args.score_store_base)
    return json.loads(json.dumps(found, default=str))


def _corpora(args: argparse.Namespace) -> list[Any]:
    """Weight and digest of each corpus, by split where the splits have corpora of their own. Paths may change."""
    blend, per_split = get_blend_and_blend_per_split(args)

    def described(one: Any) -> Any:
        if one is None:
            return None
        prefixes, weights = one
        weights = weights or [None] * len(prefixes)
        return [[weight, corpus_digest(prefix)] for prefix, weight in zip(prefixes, weights, strict=True)]

    return [described(blend)] if per_split is None else [described(one) for one in per_split]


def _objective_flags(objective: Any) -> list[str]:
    """The names of the flags of an objective and of those that it derives from."""
    names: dict[str, None] = {}
    for one in objective.__mro__:
        if "add_arguments" in vars(one):
            parser = argparse.ArgumentParser(add_help=False)
            one.add_arguments(parser.add_argument_group())
            names |= dict.fromkeys(action.dest for action in parser._actions)
    return list(names)


def _model(checkpoint: Path | None, store: Path | None) -> str | None:
    """The fingerprint of a frozen model: of its checkpoint, else the one that its store names."""
    if checkpoint is not None:
        folder = checkpoint_folder(checkpoint)
        return reference_fingerprint(folder, saved_arguments(folder))
    return None if store is None or not store.is_dir() else read_manifest(store).identity.reference


def model_started_from(args: argparse.Namespace) -> str | None:
    """The fingerprint of the model that a new run takes its first weights from; None for random ones, and for
    Megatron's legacy format.

    A resumed run takes its weights from its own checkpoints, so this is not compared, only kept.
    """
    for root, step in ((args.load, args.ckpt_step or None), (args.pretrained_checkpoint, None)):
        name = None if root is None else iteration_name(Path(root), step)
        if name is not None:
            folder = existing(Path(root) / name)
            if not check_is_distributed_checkpoint(str(folder)):
                return None
            return reference_fingerprint(folder, saved_arguments(folder))
    return None


def check_allowed(allowed: list[str], identity: Identity) -> None:
    """Refuse a name of ``--allow-changed`` that no run has: what it was to allow would be refused, or something else.

    The other objectives' names count too: a job's script may change the objective and leave them.

    Raises:
        UserError: names it, and those that there are.
    """
    flags = (name for objective in OBJECTIVES.values() for name in _objective_flags(objective))
    known = dict.fromkeys([*identity, "reference", "reference_base", *flags])
    for name in allowed:
        if name not in known:
            raise UserError(f"--allow-changed {name}: no such name; expected some of {', '.join(known)}")


def check_same_run(identity: Identity, earlier: Identity, allowed: list[str], where: str) -> None:
    """Refuse a resumed run that is another than the one that it goes on from.

    Args:
        identity: this start's.
        earlier: that of the checkpoint ``where``.
        allowed: the names whose change the user accepts.

    Raises:
        UserError: names what has changed, its values, and the flag that allows it.
    """
    for name, before in earlier.items():
        now = identity.get(name)
        # Another objective has other numbers, and names them itself.
        if now == before or name not in identity:
            continue
        if name in allowed:
            note(f"{name} was {_short(before)} in {where} and is {_short(now)} from here on, as --allow-changed says")
            continue
        raise UserError(
            f"{_named(name)} {_short(now)}, but the run in {where} was trained with {_short(before)}: {_effect(name)}. "
            f"Give the earlier value, start a new run (--finetune and another --save), or pass --allow-changed {name}"
        )


def _named(name: str) -> str:
    what = {
        "corpora": "the content of the corpora is",
        "reference": "the reference is",
        "reference_base": "its base is",
    }
    return what.get(name, f"--{name.replace('_', '-')}")


def _effect(name: str) -> str:
    if name in _DATA_FLAGS or name == "corpora":
        return "from here on it would read other rows, or rows that it has read"
    return "from here on it would train on another loss"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def write_run_file(args: argparse.Namespace, identity: Identity, step: int) -> None:
    """Add this start to ``run.json`` in ``--save``: its identity, and what it ran with."""
    path = Path(args.save) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    starts = read_run_file(path).get("starts", []) if path.exists() else []
    starts.append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "step": step,
            "world_size": args.world_size,
            "command": sys.argv,
            "versions": versions(),
            "machine": machine(),
        }
    )
    write_whole(path, json.dumps({"format": FORMAT, "identity": identity, "starts": starts}, indent=1) + "\n")


def read_run_file(path: Path) -> Mapping[str, Any]:
    """What ``run.json`` holds. Raises UserError: it is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it: it is only a record, checkpoints have what is compared"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: expected a run.json of format {FORMAT}; was it written by another program?")
    return content
