"""The start of every program that reads Megatron's flags: parsed, checked, and a vocabulary and corpora that fit.

args = parse_arguments()    # a program may look at its own flags here
check(args)
"""

import argparse
import faulthandler
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron.training import get_tokenizer
from megatron.training.arguments import parse_and_validate_args

from megatron_remit import cpu, heartbeat, patches
from megatron_remit.argument_checks import check_arguments, check_tokenizer
from megatron_remit.arguments import add_remit_arguments
from megatron_remit.artifacts import unwritable
from megatron_remit.data.checked import check_corpora, check_manifests
from megatron_remit.data.eod import RunTokenizer
from megatron_remit.data.tokenizer import megatron_fingerprint
from megatron_remit.errors import UserError
from megatron_remit.launch.parent import end_with_torchrun
from megatron_remit.megatron_flags import given, refusal
from megatron_remit.programs.start_checks import check_reads_and_writes
from megatron_remit.reference.checkpoint import saved_arguments
from megatron_remit.trust.loading import check_loaded

_SHAPE_FLAG = "--use-checkpoint-args"


def parse_arguments(
    flags: Sequence[str] | None = None,
    add_arguments: Callable[[argparse.ArgumentParser], argparse.ArgumentParser] = add_remit_arguments,
) -> argparse.Namespace:
    """Megatron's arguments and ours, as Megatron validates them, in a process made ready to run Megatron.

    Args:
        flags: the command line without the program's name; None is that of this process.
        add_arguments: adds the program's own flags to Megatron's parser (and :func:`add_remit_arguments`).

    Ends the process with a usage message on an unknown or malformed flag.

    Raises:
        UserError: --load, but no shape of the model.
    """
    end_with_torchrun()
    cpu.install()
    patches.apply()
    if flags is not None:
        # Megatron's parser reads the process's command line only.
        sys.argv = [sys.argv[0], *flags]
    stated = given()
    if "yaml_cfg" in stated:
        # Megatron's parser would put the file's values in the place of all flags before anything is checked.
        raise refusal("yaml_cfg", stated["yaml_cfg"])
    try:
        return parse_and_validate_args(extra_args_provider=add_arguments)
    except UserError as error:
        # Without a shape Megatron's validation stops before check() can.
        if "--load" in sys.argv and not {_SHAPE_FLAG, "--num-layers"} & set(sys.argv):
            raise UserError(f"{error}; --load takes the model's shape from the checkpoint with {_SHAPE_FLAG}") from None
        raise


def check(args: argparse.Namespace) -> None:
    """Check what the flags name, and fix the vocabulary in ``args``.

    Raises:
        UserError: flags that cannot work together, a damaged checkpoint or one that could run code, another tokenizer
            than the checkpoint's, an import whose shape is not taken from it, or a bad corpus.
    """
    check_arguments(args)
    check_reads_and_writes(args)
    check_loaded(args)
    _check_shape(args)
    set_vocabulary(args)
    check_corpora(args, args.remit_vocab_size)
    check_manifests(args, RunTokenizer.of_megatron(get_tokenizer(), str(args.tokenizer_model)))


def _check_shape(args: argparse.Namespace) -> None:
    """Refuse an import whose shape comes from flags: a window, a RoPE or an epsilon that they leave out or change shows
    in no tensor, so that another model would be trained without a word."""
    if args.load is None or args.use_checkpoint_args:
        return
    tracker = Path(args.load) / "latest_checkpointed_iteration.txt"
    if not tracker.is_file() or tracker.read_text(encoding="utf-8").strip() != "release":
        return
    if hasattr(saved_arguments(Path(args.load) / "release"), "remit_architecture"):
        raise UserError(
            f"--load {args.load} is an import, and its shape is not taken from it; pass {_SHAPE_FLAG} in place of the "
            "flags that describe the model"
        )


def set_vocabulary(args: argparse.Namespace) -> None:
    """Fix the run's logical vocabulary and its tokenizer's fingerprint in ``args`` (and so in its checkpoints).

    The logical vocabulary is the model's own number of rows where a checkpoint states it (a Hugging Face embedding can
    have more rows than its tokenizer has tokens), else the tokenizer's.

    Raises:
        UserError: the tokenizer has more tokens than the checkpoint has rows, or the objective cannot work with it.
    """
    tokenizer = get_tokenizer()
    if args.remit_vocab_size is None:
        args.remit_vocab_size = tokenizer.vocab_size
    check_tokenizer(args, tokenizer, f"the checkpoint in --load {args.load}")
    args.remit_tokenizer_fingerprint = megatron_fingerprint(tokenizer)


def show_life(args: argparse.Namespace) -> None:
    """Begin the heartbeat (rank 0), and let SIGUSR2 print what each thread is doing.

    Raises:
        UserError: the file of ``--heartbeat`` cannot be written.
    """
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    if args.heartbeat is not None and args.rank == 0:
        with unwritable(f"--heartbeat {args.heartbeat}: cannot be written", "name a file in a folder that exists"):
            heartbeat.begin(args.heartbeat)


def end_in_peace(args: argparse.Namespace) -> None:
    """From now on ``--exit-signal`` does nothing to this process, whose work is done.

    At its exit Python restores the signal's default action: a second signal, which Slurm sends, would then turn a rank
    that has saved everything into one that failed.
    """
    if args.exit_signal_handler:
        signal.signal(args.exit_signal, signal.SIG_IGN)
