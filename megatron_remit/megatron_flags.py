"""Which of Megatron's flags this program honours, refuses or takes without an effect, by ``megatron_flags.toml``.

Megatron's parser takes some 800 flags, those of its other programs too. A flag that would change nothing here is an
error where its user expects something of it.
"""

import argparse
import functools
import sys
import tomllib
from collections.abc import Iterable
from importlib import resources
from typing import Any

from megatron.core.transformer.enums import AttnBackend
from megatron.training import arguments

from megatron_remit.errors import UserError
from megatron_remit.model_arguments import MODEL_ARGUMENTS

CHOSEN_ANEW = ("attention_dropout", "hidden_dropout", "moe_grouped_gemm")
"""Values that are the run's own choice although Megatron's --use-checkpoint-args takes them from the checkpoint."""
_KEPT = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels")
"""Of the model's arguments those that --use-checkpoint-args leaves at the flag's value."""
_OPTIMIZERS = ("adam", "sgd")
_UNSET = object()


@functools.cache
def table() -> dict[str, Any]:
    """The table as it is written: ``refused`` and ``harmless`` are lists of (because, flags), ``honoured`` has names by
    Megatron's groups."""
    text = resources.files("megatron_remit").joinpath("megatron_flags.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@functools.cache
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    return arguments.add_megatron_arguments(parser)


@functools.cache
def numbers() -> dict[str, Any]:
    """Of Megatron's flags that take numbers: the default, by name."""
    return {action.dest: action.default for action in _parser()._actions if action.type in (int, float)}


def spelt(name: str) -> str:
    """How a user writes the flag whose value is ``name`` in the parsed arguments."""
    for action in _parser()._actions:
        if action.dest == name and action.option_strings:
            return action.option_strings[0]
    return f"--{name.replace('_', '-')}"


def differs(name: str, value: Any) -> bool:
    """Whether ``value`` is another than that which the flag ``name`` of Megatron's has by default."""
    return (
        value is not None
        and any(action.dest == name for action in _parser()._actions)
        and (value != _parser().get_default(name))
    )


def given(command_line: Iterable[str] | None = None) -> dict[str, Any]:
    """The values of those of Megatron's flags that the command line (default: this process's) has, by name.

    Ends the process with a usage message on a malformed one.
    """
    return dict(_given(tuple(sys.argv[1:] if command_line is None else command_line)))


@functools.cache
def _given(words: tuple[str, ...]) -> dict[str, Any]:
    # A name that is there already gets no default: what is still unset at the end was not given.
    found = argparse.Namespace(**{action.dest: _UNSET for action in _parser()._actions})
    _parser().parse_known_args(words, found)
    return {name: value for name, value in vars(found).items() if value is not _UNSET}


@functools.cache
def _refused() -> dict[str, str]:
    """The reason, by the name of the flag."""
    return {name: row["because"] for row in table()["refused"] for name in row["flags"]}


def refusal(name: str, value: Any) -> UserError:
    """The error for a flag that the table refuses."""
    return UserError(f"{spelt(name)}{'' if value is True else f' {value}'} is not supported: {_refused()[name]}")


def check_megatron_flags(args: argparse.Namespace) -> None:
    """Refuse flags of Megatron that this program does not honour. ``args`` may be those before Megatron's validation.

    Raises:
        UserError: names the flag, its value and the reason.
    """
    for name in _refused():
        value = getattr(args, name, None)
        if value not in (None, False, _parser().get_default(name)):
            raise refusal(name, value)
    if args.ckpt_format != "torch_dist":
        raise UserError(
            f"--ckpt-format {args.ckpt_format} is not supported: checkpoints are torch_dist; imports, references and "
            "exports read nothing else. Leave the flag out"
        )
    if args.dataloader_type == "external":
        raise UserError("--dataloader-type external is not supported: the data is a corpus; use 'single' or 'cyclic'")
    if args.optimizer not in _OPTIMIZERS:
        raise UserError(
            f"--optimizer {args.optimizer} is not supported: training with it is not tested here; use "
            f"{' or '.join(_OPTIMIZERS)}"
        )
    if args.attention_backend == AttnBackend.local:
        raise UserError(
            "--attention-backend local is not supported: Megatron asks for --spec local, which names no layers; use "
            "--transformer-impl local"
        )
    if args.async_save and not args.use_persistent_ckpt_worker:
        raise UserError(
            "--async-save without --use-persistent-ckpt-worker: Megatron switches it off; pass both, or neither"
        )
    if args.non_persistent_ckpt_type == "local" and not getattr(args, "trust_checkpoint", False):
        raise UserError(
            "--non-persistent-ckpt-type local is not supported: such checkpoints are pickles, which can run code, and "
            "are not checked; use 'global', or pass --trust-checkpoint if nobody else can write to "
            "--non-persistent-local-ckpt-dir"
        )
    if args.transformer_impl == "local":
        _check_local_layers(args)


def _check_local_layers(args: argparse.Namespace) -> None:
    """Refuse what only Transformer Engine's layers do, and the others leave out without a word."""
    for name in ("fp8", "fp4"):
        value = getattr(args, name)
        if value is not None:
            raise UserError(
                f"{spelt(name)} {value} with --transformer-impl local: these layers compute in --bf16, --fp16 or fp32; "
                "use Transformer Engine's or leave the flag out"
            )
    if args.qk_clip or args.log_max_attention_logit:
        raise UserError(
            f"{'--qk-clip' if args.qk_clip else '--log-max-attention-logit'} with --transformer-impl local: torch's "
            "fused attention does not give the largest logit; use Transformer Engine's layers or leave the flag out"
        )


def check_not_replaced(args: argparse.Namespace, stated: dict[str, Any], saved: argparse.Namespace) -> None:
    """Refuse flags that describe another model than the one that ``--use-checkpoint-args`` takes.

    ``args`` are those after the checkpoint's were taken, ``stated`` what :func:`given` found before. An import
    describes its model wholly: what it does not state is neutral there.

    Raises:
        UserError: names the flag, its value and the checkpoint's.
    """
    imported = hasattr(saved, "remit_architecture")
    unstated = {
        row.name: row.neutral
        for row in MODEL_ARGUMENTS
        if imported and (row.fingerprint or row.export) and getattr(saved, row.name, None) is None
    }
    for name, value in stated.items():
        found = unstated.get(name, getattr(args, name, value))
        if name in _KEPT and getattr(saved, name, None) is not None:
            found = getattr(saved, name)
        if not _equal(found, value):
            raise UserError(
                f"{spelt(name)} {value} with --use-checkpoint-args: the checkpoint in --load {args.load} has {found}, "
                "which the model was made with; leave the flag out"
            )


def _equal(found: Any, value: Any) -> bool:
    """A checkpoint may hold a list where a flag gives a tuple."""
    if isinstance(found, list | tuple) and isinstance(value, list | tuple):
        return list(found) == list(value)
    return bool(found == value)
