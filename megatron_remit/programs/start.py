"""The start of every program that reads Megatron's flags: parsed, checked, and a vocabulary and corpora that fit.

args = parse_arguments()    # a program may look at its own flags here
check(args)
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from megatron.training import get_tokenizer
from megatron.training.arguments import parse_and_validate_args

from megatron_remit import cpu, patches
from megatron_remit.arguments import add_remit_arguments, check_arguments, check_tokenizer
from megatron_remit.data.checked import check_corpora, check_manifests
from megatron_remit.data.eod import RunTokenizer
from megatron_remit.data.tokenizer import megatron_fingerprint


def parse_arguments(
    flags: Sequence[str] | None = None,
    add_arguments: Callable[[argparse.ArgumentParser], argparse.ArgumentParser] = add_remit_arguments,
) -> argparse.Namespace:
    """Megatron's arguments and ours, as Megatron validates them, in a process made ready to run Megatron.

    Args:
        flags: the command line without the program's name; None is that of this process.
        add_arguments: adds the program's own flags to Megatron's parser (and :func:`add_remit_arguments`).

    Ends the process with a usage message on an unknown or malformed flag.
    """
    cpu.install()
    patches.apply()
    if flags is not None:
        # Megatron's parser reads the process's command line only.
        sys.argv = [sys.argv[0], *flags]
    return parse_and_validate_args(extra_args_provider=add_arguments)


def check(args: argparse.Namespace) -> None:
    """Check what the flags name, and fix the vocabulary in ``args``.

    Raises:
        UserError: flags that cannot work together, another tokenizer than the checkpoint's, or a bad corpus.
    """
    check_arguments(args)
    set_vocabulary(args)
    check_corpora(args, args.remit_vocab_size)
    check_manifests(args, RunTokenizer.of_megatron(get_tokenizer(), str(args.tokenizer_model)))


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
