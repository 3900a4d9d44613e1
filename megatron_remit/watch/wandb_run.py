"""One Weights & Biases run for all starts of a training run.

Megatron calls ``wandb.init`` on the last rank without an id, so that each requeue would be a run of its own. W&B takes
both from the environment.
"""

import argparse
import os
import secrets
from pathlib import Path

from megatron_remit.artifacts import write_whole
from megatron_remit.errors import UserError

FILE = "wandb_run_id"
"""Next to ``run.json`` in ``--save``. The last rank writes it, ``run.json`` the first."""


def keep_run_id(args: argparse.Namespace) -> None:
    """Before ``wandb.init``: set the environment so that it goes on with the W&B run of ``--save``, or begins one.

    ``WANDB_RUN_ID`` and ``WANDB_RESUME`` of the user win.

    Raises:
        UserError: the file cannot be read or written.
    """
    if not args.wandb_project or args.save is None or args.rank != args.world_size - 1:
        return
    os.environ.setdefault("WANDB_RESUME", "allow")
    if "WANDB_RUN_ID" not in os.environ:
        os.environ["WANDB_RUN_ID"] = _run_id(Path(args.save))


def _run_id(folder: Path) -> str:
    path = folder / FILE
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
