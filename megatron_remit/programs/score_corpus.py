"""A training command's flags, and no training: the run's rows are scored into a store, or only listed by their keys."""

import torch
from megatron.training import training
from megatron.training.global_vars import get_signal_handler
from tqdm import tqdm

from megatron_remit.data.datasets import build_datasets, reads_data
from megatron_remit.data.packed import documents_apart
from megatron_remit.errors import UserError
from megatron_remit.programs.start import check, end_in_peace, parse_arguments, show_life
from megatron_remit.reference.checkpoint import reference_arguments
from megatron_remit.reference.model import build_reference
from megatron_remit.score_store.keys import Key, row_key
from megatron_remit.scoring import session
from megatron_remit.scoring.scorer import score_rows


def main() -> None:
    """Score the training set of a run into ``--score-store``, or as much as ``--exit-signal-handler`` leaves time for.

    Raises UserError on bad input before the first row.
    """
    args = parse_arguments()
    if args.score_store is None or args.reference_load is None:
        raise UserError(
            "scoring needs --score-store DIR and --reference-load DIR in addition to the training run's flags"
        )
    # The command of a run that only reads is taken as it is.
    args.objective, args.score_miss, args.score_store_write = "remit", "online", True
    args.score_store_base = args.reference_base_load = None
    args.reference_offload = False  # there is nothing else to make room for
    check(args)
    show_life(args)
    reference_args = reference_arguments(args)
    # One of another reference is refused before this one is built.
    store = None if session.makes_store(args) else session.open_store(args, create=False)
    training.initialize_megatron()
    reference = build_reference(reference_args)
    training.update_train_iters(args)
    sizes = training.get_train_valid_test_num_samples()
    dataset, *_ = build_datasets(sizes, reads_data)
    if store is None:
        store = session.open_store(args, create=True)
    try:
        score_rows(reference, dataset, store, sizes[0], _is_asked_to_end if args.exit_signal_handler else None)
    finally:
        end_in_peace(args)
        session.close()
        torch.distributed.destroy_process_group()


def _is_asked_to_end() -> bool:
    """Whether ``--exit-signal`` came to this rank. Megatron's own question is one to all ranks, but replicas that have
    nothing left to score are gone."""
    return bool(get_signal_handler()._signal_received)


def corpus_keys(flags: list[str]) -> set[Key]:
    """Keys of the training rows of the run with these Megatron flags (without those of the parallel layout).

    Reads the whole corpus in one process, without a model. Raises UserError on bad flags or a bad corpus.
    """
    args = parse_arguments(flags)
    check(args)
    training.update_train_iters(args)
    sizes = training.get_train_valid_test_num_samples()
    dataset, *_ = build_datasets(sizes, lambda: True)
    assert dataset is not None, "one process builds every dataset"
    rows = tqdm(range(sizes[0]), desc="corpus", unit="row", disable=None)
    return {row_key(dataset[row], **documents_apart(args)) for row in rows}
