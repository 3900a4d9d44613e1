"""The program: ``torchrun -m megatron_remit.pretrain <Megatron flags> --objective remit --reference-load DIR``.

Megatron's own loop trains. This file only puts its parts together: arguments, datasets, the forward step, and the
reference that scores ahead of each step.
"""

import argparse
from functools import partial

from torch.nn import Module

from megatron_remit import cpu
from megatron_remit.errors import UserError, cli


def main() -> None:
    """Run training as the command line says. Raises UserError on bad input before the first step."""
    # Before Megatron's modules bind names of torch.cuda at their import.
    cpu.install()
    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args

    from megatron_remit import patches
    from megatron_remit.arguments import add_remit_arguments, check_arguments
    from megatron_remit.data.datasets import check_corpora
    from megatron_remit.forward import forward_step
    from megatron_remit.objectives import objective_class
    from megatron_remit.scoring import session
    from megatron_remit.scoring.arguments import scores_ahead
    from megatron_remit.scoring.dataset import train_valid_test_datasets
    from megatron_remit.specs.native import gpt_config

    patches.apply()
    args = parse_and_validate_args(extra_args_provider=add_remit_arguments)
    check_arguments(args)
    set_vocabulary(args)
    check_corpora(args, args.remit_vocab_size)
    config = gpt_config(args)
    if objective_class(args.objective).needs_reference and not args.skip_train:
        if args.score_store is not None:
            session.open_store(args, create=args.score_store_write)
        from megatron_remit.reference.checkpoint import reference_arguments

        own = reference_arguments(args) if scores_ahead(args) else None
        config.post_wrap_hooks.append(partial(_add_reference, own))
    try:
        pretrain(
            pretrain_cfg_container_from_args(args, config),
            train_valid_test_datasets,
            ModelType.encoder_or_decoder,
            forward_step,
        )
    finally:
        session.close()


def set_vocabulary(args: argparse.Namespace) -> None:
    """Fix the run's logical vocabulary and its tokenizer's fingerprint in ``args`` (and so in its checkpoints).

    The logical vocabulary is the model's own number of rows where a checkpoint states it (a Hugging Face embedding can
    have more rows than its tokenizer has tokens), else the tokenizer's.

    Raises:
        UserError: the tokenizer has more tokens than the checkpoint has rows, or does not mark where documents end
            although ``--remit-centering document`` needs it.
    """
    from megatron.training import get_tokenizer

    from megatron_remit.data.tokenizer import megatron_fingerprint
    from megatron_remit.objectives import objective_class

    tokenizer = get_tokenizer()
    if args.remit_vocab_size is None:
        args.remit_vocab_size = tokenizer.vocab_size
    if tokenizer.vocab_size > args.remit_vocab_size:
        raise UserError(
            f"--tokenizer-model {args.tokenizer_model} has {tokenizer.vocab_size} tokens, but the checkpoint in "
            f"--load {args.load} has {args.remit_vocab_size} embedding rows; use the tokenizer of that checkpoint"
        )
    objective_class(args.objective).check_tokenizer(args, tokenizer)
    args.remit_tokenizer_fingerprint = megatron_fingerprint(tokenizer)


def _add_reference(reference_args: argparse.Namespace | None, policy: list[Module]) -> list[Module]:
    """Post-wrap hook of the policy's model config: the first moment at which the process groups stand.

    ``reference_args`` is None when every score comes from a store: no reference is built.
    """
    from megatron_remit import patches
    from megatron_remit.reference.model import build_reference

    patches.score_ahead_with([] if reference_args is None else build_reference(reference_args))
    return policy


if __name__ == "__main__":
    cli(main)
