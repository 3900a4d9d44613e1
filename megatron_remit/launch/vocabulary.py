"""Vocabulary and tokenizers in the plan: the checks of the training program, on Hugging Face folders."""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path

from megatron.core.tokenizers import MegatronTokenizer

from megatron_remit.argument_checks import check_tokenizer
from megatron_remit.convert.families import read_config
from megatron_remit.convert.hf_side_files import has_tokenizer
from megatron_remit.data.checked import check_corpora, corpora_of
from megatron_remit.reference.fit import Model, check_tokens


def check_vocabulary(args: argparse.Namespace, base_hf: Path, references: Sequence[Path]) -> list[str]:
    """Check rows, tokenizers and corpora of the run with the parsed flags ``args`` as training will.

    ``references`` are the Hugging Face folders of the frozen models of the run.

    Returns:
        What a user should know about the reference's vocabulary, a sentence each.

    Raises:
        UserError: the base's tokenizer does not fit its embedding or the objective; the reference's is missing or of
            other tokens; a corpus is missing, cut short or empty, or holds an id that a model has no row for.
    """
    # A run without token strings names no folder; its corpora are checked against the rows all the same.
    strings = args.tokenizer_type != "NullTokenizer"
    run = copy.copy(args)
    run.remit_vocab_size, run.tokenizer_model = rows_of(base_hf), str(base_hf)
    if strings and has_tokenizer(base_hf):
        opened = MegatronTokenizer.from_pretrained(str(base_hf), metadata_path={"library": "huggingface"})
        check_tokenizer(run, opened, str(base_hf / "config.json"))
    check_corpora(run, run.remit_vocab_size)
    return [
        note
        for hf in references
        for note in check_tokens(
            Model(str(base_hf), run.remit_vocab_size, base_hf if strings else None),
            Model(str(hf), rows_of(hf), hf),
            None if args.mock_data else list(corpora_of(args)),
            args.allow_reference_special_tokens,
        )
    ]


def rows_of(hf: Path) -> int:
    """The embedding rows of the model in a Hugging Face folder, by its config."""
    _family, config = read_config(hf)
    return int(config["vocab_size"])
