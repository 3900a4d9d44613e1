"""The keys of every row that a training run draws, in one process and without a model."""

import sys

from tqdm import tqdm

from megatron_remit import cpu
from megatron_remit.score_store.keys import Key


def corpus_keys(flags: list[str]) -> set[Key]:
    """Keys of the training rows of the run with these Megatron flags (without those of the parallel layout).

    Reads the whole corpus. Raises UserError on bad flags or a bad corpus.
    """
    cpu.install()
    from megatron.training import training
    from megatron.training.arguments import parse_and_validate_args

    from megatron_remit import patches
    from megatron_remit.arguments import add_remit_arguments, check_arguments
    from megatron_remit.data.datasets import build_datasets, check_corpora
    from megatron_remit.pretrain import set_vocabulary
    from megatron_remit.score_store.keys import row_key

    patches.apply()
    sys.argv = [sys.argv[0], *flags]
    args = parse_and_validate_args(extra_args_provider=add_remit_arguments)
    check_arguments(args)
    set_vocabulary(args)
    check_corpora(args, args.remit_vocab_size)
    training.update_train_iters(args)
    sizes = training.get_train_valid_test_num_samples()
    dataset, *_ = build_datasets(sizes, lambda: True)
    rows = tqdm(range(sizes[0]), desc="corpus", unit="row", disable=None)
    return {row_key(dataset[row], args.reset_position_ids, args.reset_attention_mask) for row in rows}
