"""The flags of what is watched, part of the ReMiT group, and what W&B needs before the run starts."""

import argparse
import importlib.util
import math
from typing import Any

from megatron_remit.errors import UserError


def add_watch_arguments(group: Any) -> None:
    """Add the flags to an argument group of argparse."""
    group.add_argument(
        "--watch-sources",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Log loss, weight, delta and clipped share of each corpus of a blend.",
    )
    group.add_argument(
        "--watch-histogram-interval",
        type=_steps,
        default=100,
        metavar="N",
        help="Log histograms of the weights and of delta every N steps; 0: never.",
    )
    group.add_argument(
        "--watch-token-interval",
        type=_steps,
        default=1000,
        metavar="N",
        help="Log the most up- and down-weighted tokens with their context every N steps, to tokens.jsonl in --save "
        "and to TensorBoard; 0: never.",
    )
    group.add_argument(
        "--watch-least-std",
        type=_deviation,
        default=0.01,
        metavar="S",
        help="Warn when the weights' standard deviation stays below S: the run is next-token prediction then.",
    )
    group.add_argument(
        "--watch-patience",
        type=_steps,
        default=20,
        metavar="M",
        help="Logs in a row (--log-interval) before a warning about the weights' deviation or the sign of delta; 0: no "
        "warnings.",
    )


def check_watch(args: argparse.Namespace) -> None:
    """Refuse W&B flags with which the last rank would stop at the start. Raises UserError."""
    if not args.wandb_project:
        return
    if not args.wandb_exp_name:
        raise UserError(
            f"--wandb-project {args.wandb_project} without --wandb-exp-name: W&B shows the run under it; give one"
        )
    if not (args.save or args.wandb_save_dir):
        raise UserError(
            f"--wandb-project {args.wandb_project}: W&B keeps its files in --wandb-save-dir, by default in --save, and "
            "neither is given; give one"
        )
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"--wandb-project {args.wandb_project}: the package wandb is not installed; pip install "
            "'megatron-remit[wandb]', or leave the flag out"
        )


def _steps(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps; 0 turns it off")
    return int(text)


def _deviation(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no standard deviation, a number from 0 on")
    return value
