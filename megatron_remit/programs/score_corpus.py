"""The program behind ``tools/score_corpus.py``: a training command's flags, and no training."""

from megatron_remit import cpu


def main() -> None:
    """Score the training set of a run into ``--score-store``. Raises UserError on bad input before the first row."""
    cpu.install()
    import torch
    from megatron.training import training
    from megatron.training.arguments import parse_and_validate_args

    from megatron_remit import patches
    from megatron_remit.arguments import add_remit_arguments, check_arguments
    from megatron_remit.data.datasets import build_datasets, check_corpora, reads_data
    from megatron_remit.errors import UserError
    from megatron_remit.pretrain import set_vocabulary
    from megatron_remit.reference.checkpoint import reference_arguments
    from megatron_remit.reference.model import build_reference
    from megatron_remit.scoring import session
    from megatron_remit.scoring.scorer import score_rows

    patches.apply()
    args = parse_and_validate_args(extra_args_provider=add_remit_arguments)
    if args.score_store is None or args.reference_load is None:
        raise UserError("scoring needs --score-store DIR and --reference-load DIR beside the training run's flags")
    # The command of a run that only reads is taken as it is.
    args.objective, args.score_miss = "remit", "online"
    check_arguments(args)
    set_vocabulary(args)
    check_corpora(args, args.remit_vocab_size)
    reference_args = reference_arguments(args)
    store = session.open_store(args, create=True)
    training.initialize_megatron()
    reference = build_reference(reference_args)
    training.update_train_iters(args)
    sizes = training.get_train_valid_test_num_samples()
    dataset, *_ = build_datasets(sizes, reads_data)
    try:
        score_rows(reference, dataset, store, sizes[0])
    finally:
        session.close()
        torch.distributed.destroy_process_group()
