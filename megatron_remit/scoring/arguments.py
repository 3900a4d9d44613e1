"""The flags of the score store, part of the ReMiT group, and what must hold between them and other flags."""

import argparse
from pathlib import Path
from typing import Any

from megatron_remit.errors import UserError
from megatron_remit.objectives.registry import OBJECTIVES, objective_class
from megatron_remit.score_store.writer import SHARD_SECONDS


def add_score_store_arguments(group: Any) -> None:
    """Add the flags to an argument group of argparse."""
    group.add_argument(
        "--score-store",
        type=Path,
        metavar="DIR",
        help="Read the reference's NLLs from this store (tools/score_corpus.py) and build no reference.",
    )
    group.add_argument(
        "--score-store-base",
        type=Path,
        metavar="DIR",
        help="Read the NLLs of the reference's base, for objectives with two references, from this store.",
    )
    group.add_argument(
        "--score-miss",
        choices=("error", "online"),
        default="error",
        help="error: stop at a row that the store lacks. online: score it, which needs --reference-load "
        "and builds the reference.",
    )
    group.add_argument(
        "--score-wait",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="Wait this long for a row that is not there yet, while another job fills the store.",
    )
    group.add_argument(
        "--score-store-write",
        action="store_true",
        help="Put the rows that are scored online into the store; make it if there is none.",
    )
    group.add_argument(
        "--score-dtype", choices=("float16", "float32"), help="How a new store keeps NLLs. Default: float16."
    )
    group.add_argument(
        "--score-shard-seconds",
        type=_seconds,
        default=SHARD_SECONDS,
        metavar="SECONDS",
        help="A scored row is in the store after about this long; a killed job loses as much.",
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def scores_ahead(args: argparse.Namespace) -> bool:
    """Whether the run builds the reference and scores its training steps with it."""
    return objective_class(args.objective).needs_reference and (args.score_store is None or args.score_miss == "online")


def scores_base_ahead(args: argparse.Namespace) -> bool:
    """Whether the run builds the reference's base and scores its training steps with it."""
    return objective_class(args.objective).needs_base and args.score_store_base is None


def stored_columns(args: argparse.Namespace) -> dict[str, str]:
    """The batch columns that come with the samples, each with the flag of its store."""
    flags = {"reference_nll": "--score-store", "base_nll": "--score-store-base"}
    stores = {"reference_nll": args.score_store, "base_nll": args.score_store_base}
    return {column: flag for column, flag in flags.items() if stores[column] is not None}


def check_base(args: argparse.Namespace) -> None:
    """Refuse a run whose objective needs a base of the reference and has none, and one that has it in vain.

    Raises:
        UserError: names the flag, what was found and what to do.
    """
    given = [
        flag
        for flag, value in (
            ("--score-store-base", args.score_store_base),
            ("--reference-base-load", args.reference_base_load),
        )
        if value is not None
    ]
    if objective_class(args.objective).needs_base:
        if not given:
            raise UserError(
                f"--objective {args.objective} needs the NLLs of the reference's base: give --score-store-base DIR "
                "(tools/score_corpus.py with the base as --reference-load makes it) or --reference-base-load DIR"
            )
        for flags, first, second in (
            ("--score-store-base and --score-store", args.score_store_base, args.score_store),
            ("--reference-base-load and --reference-load", args.reference_base_load, args.reference_load),
        ):
            if first is not None and second is not None and first.resolve() == second.resolve():
                raise UserError(
                    f"{flags} are both {first}: the reference would be compared with itself; give the model that the "
                    "reference was tuned from"
                )
    elif given:
        wanted = ", ".join(name for name, objective in OBJECTIVES.items() if objective.needs_base)
        raise UserError(
            f"{given[0]} is for objectives with two references ({wanted}), and the objective is {args.objective}; "
            "leave it out"
        )


def check_score_store(args: argparse.Namespace) -> None:
    """Refuse combinations of flags that cannot work.

    Raises:
        UserError: names the flag, what was found and what to do.
    """
    _check_wait(args)
    if args.score_store is None:
        given = [
            flag
            for flag, on in (
                ("--score-miss online", args.score_miss == "online"),
                ("--score-wait", args.score_wait > 0 and args.score_store_base is None),
                ("--score-store-write", args.score_store_write),
                ("--score-dtype", args.score_dtype is not None),
            )
            if on
        ]
        if given:
            raise UserError(f"{given[0]} needs a store: give --score-store DIR")
        return
    objective = objective_class(args.objective)
    if not objective.needs_reference:
        raise UserError("--score-store is for objectives with a reference: give --objective remit, or leave it out")
    if objective.reference_column != "reference_nll":
        raise UserError(
            f"--score-store holds one NLL per token, and --objective {args.objective} needs the reference's whole "
            "distribution: leave the store out and give --reference-load DIR"
        )
    if args.score_miss == "online" and args.reference_load is None:
        raise UserError("--score-miss online scores with the reference: give --reference-load DIR")
    if args.score_store_write and args.score_miss != "online":
        raise UserError("--score-store-write stores what is scored online: give --score-miss online")


def _check_wait(args: argparse.Namespace) -> None:
    limit = args.distributed_timeout_minutes * 60
    if args.score_wait >= limit and not (args.score_store is None and args.score_store_base is None):
        raise UserError(
            f"--score-wait {args.score_wait:g} is not below the {limit} s after which the other ranks give up; raise "
            "--distributed-timeout-minutes"
        )
