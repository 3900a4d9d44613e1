"""Which reference checkpoint a run reads, and whether it fits the run. All of it runs before the model is built."""

import argparse
import copy
from pathlib import Path

from megatron.training import checkpointing

from megatron_remit.convert.hf_side_files import has_tokenizer
from megatron_remit.convert.megatron_io import check_shards, iteration_folder
from megatron_remit.data.checked import corpora_of
from megatron_remit.errors import UserError
from megatron_remit.layout import check_divides
from megatron_remit.model_arguments import NEUTRAL
from megatron_remit.reference.fit import Model, check_length, check_tokens, common_rows
from megatron_remit.reference.precision import fit_precision
from megatron_remit.trust.loading import check_iteration
from megatron_remit.trust.pickles import read_common_state, read_metadata

# The reference is not trained, so the policy's regularisation, recomputation and offloading do not apply to it. Its
# microbatches and hidden size do not fit the communication buffers that are laid out for the policy.
NOT_INHERITED = {
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "recompute_granularity": None,
    "tp_comm_overlap": False,
    "fine_grained_activation_offloading": False,
    "cpu_offloading": False,
    "cpu_offloading_num_layers": 0,
    # Experts choose by their own scores alone, and drop no token: every token of the corpus is scored.
    "moe_router_load_balancing_type": "none",
    "moe_aux_loss_coeff": 0.0,
    "moe_z_loss_coeff": None,
    "moe_input_jitter_eps": None,
    "moe_expert_capacity_factor": None,
    "moe_pad_expert_input_to_capacity": False,
    "moe_router_force_load_balancing": False,
    "moe_router_force_biased": None,
    "moe_enable_routing_replay": False,
    "overlap_moe_expert_parallel_comm": False,
    "delay_wgrad_compute": False,
}
# How experts were balanced decides how they are chosen, in a way that the tensors of the model alone do not show.
_UNKNOWN_CHOICE = {"sinkhorn", "quantile_balancing"}


FLAG = "--reference-load"
BASE_FLAG = "--reference-base-load"
"""The flag of the second frozen model, the reference's base, which some objectives compare the reference with."""


def checkpoint_folder(root: Path, flag: str = FLAG) -> Path:
    """The folder of ``root``'s latest iteration, after a check that it is whole.

    Raises:
        UserError: ``root`` is no checkpoint, or the checkpoint is truncated or was never finished.
    """
    try:
        folder = iteration_folder(root)
        check_shards(folder)
    except UserError as error:
        raise UserError(
            f"{flag} {root}: {error}; give a finished torch_dist checkpoint "
            "(tools/import_hf.py or a training run writes one)"
        ) from None
    return folder


def saved_arguments(folder: Path) -> argparse.Namespace:
    """The arguments that the checkpoint iteration in ``folder`` was saved with.

    Raises:
        UserError: it has none, or they cannot be read.
    """
    saved = read_common_state(folder, read_metadata(folder)).get("args")
    if saved is None:
        raise UserError(f"{folder} holds no arguments, so the reference's shape is unknown; import it again")
    return saved


def reference_arguments(args: argparse.Namespace, flag: str = FLAG) -> argparse.Namespace:
    """The run's arguments, but with the model that the reference's checkpoint states.

    ``flag`` names the checkpoint: that of the reference, or of its base. In ``args`` only ``remit_common_vocab_size``
    changes, and for the reference only: it says over how many tokens the model's probabilities are taken. The result
    has it for either. The embedding gets the policy's number of rows, whatever the checkpoint has: then each
    tensor-parallel rank holds the same token ids of both models, and rows that the policy lacks are not read.

    Raises:
        UserError: the checkpoint is missing or not whole, or its vocabulary, tokenizer, sequence length or shape does
            not fit the run.
    """
    root = args.reference_load if flag == FLAG else args.reference_base_load
    folder = checkpoint_folder(root, flag)
    try:
        check_iteration(folder, args.skip_digests, args.rank, args.world_size)
    except UserError as error:
        raise UserError(f"{flag} {root}: {error}") from None
    saved = saved_arguments(folder)
    own = copy.copy(args)
    # Where the checkpoint says None, or nothing, the reference must not end up with what the policy has.
    vars(own).update(NEUTRAL)
    own.load, own.ckpt_step = str(root), None
    own.reference_load, own.reference_flag = root, flag
    checkpointing.load_args_from_checkpoint(own)
    name = f"{flag} {root}"
    check_length(name, own.max_position_embeddings, args.seq_length)
    own.remit_common_vocab_size = _check_vocabulary(args, saved, root, name)
    if flag == FLAG:
        args.remit_common_vocab_size = own.remit_common_vocab_size
    own.padded_vocab_size = args.padded_vocab_size
    fit_experts(args, own, saved, name)
    fit_to_layout(args, own, name)
    vars(own).update(NOT_INHERITED)
    fit_precision(args, own)
    return own


def _check_vocabulary(args: argparse.Namespace, saved: argparse.Namespace, root: Path, where: str) -> int:
    """The number of tokens that both models have, after a check that these are the same tokens."""
    policy_folder = Path(args.tokenizer_model) if args.tokenizer_type == "HuggingFaceTokenizer" else None
    policy = Model(
        f"--tokenizer-model {args.tokenizer_model}",
        args.remit_vocab_size,
        policy_folder,
        args.remit_tokenizer_fingerprint,
    )
    rows = getattr(saved, "remit_vocab_size", None) or getattr(saved, "vocab_size", None) or args.remit_vocab_size
    reference = Model(
        where,
        rows,
        _tokenizer_folder(root, saved),
        getattr(saved, "remit_tokenizer_fingerprint", None),
    )
    corpora: list[str] | None = None if args.mock_data else []
    if corpora is not None and args.rank == 0:
        # Reading a corpus through takes time: one rank does it, and its error ends all of them.
        corpora = list(corpora_of(args))
    for note in check_tokens(policy, reference, corpora, args.allow_reference_special_tokens):
        if args.rank == 0:
            print(f"> {note}", flush=True)
    return common_rows(policy.rows, rows)


def _tokenizer_folder(root: Path, saved: argparse.Namespace) -> Path:
    """Where the reference's tokenizer lies: next to an imported model, else where its own training took it from."""
    imported = root / "hf"
    trained_with = getattr(saved, "tokenizer_model", None)
    if not has_tokenizer(imported) and trained_with and has_tokenizer(Path(trained_with)):
        return Path(trained_with)
    return imported


def fit_to_layout(args: argparse.Namespace, own: argparse.Namespace, name: str) -> None:
    """Spread the reference's layers evenly over the policy's pipeline where the two have different numbers of them.

    Args:
        args: the run's arguments, with the policy's shape.
        own: the same with the reference's; what holds for the policy's layers only is taken out.
        name: the reference, as messages name it.

    Raises:
        UserError: the reference does not divide over the policy's ranks.
    """
    if own.num_layers != args.num_layers:
        # An uneven split over the stages holds for the policy's layers only.
        own.decoder_first_pipeline_num_layers = own.decoder_last_pipeline_num_layers = None
        own.pipeline_model_parallel_layout = own.num_layers_per_virtual_pipeline_stage = None
        own.account_for_embedding_in_pipeline_split = own.account_for_loss_in_pipeline_split = False
        stages, chunks = args.pipeline_model_parallel_size, args.virtual_pipeline_model_parallel_size or 1
        if own.num_layers % (stages * chunks):
            raise UserError(
                f"{name}: it sits on the policy's ranks, but its {own.num_layers} layers do not divide over {stages} "
                f"pipeline stages of {chunks} model chunks each; change --pipeline-model-parallel-size (or the virtual "
                "one) or use another reference"
            )
    check_divides(own, name)


def fit_experts(args: argparse.Namespace, own: argparse.Namespace, saved: argparse.Namespace, name: str) -> None:
    """Choose how many ranks share the reference's experts; the policy's may be shared by another number of them.

    Args:
        args: the run's arguments, with the policy's shape.
        own: the same with the reference's shape, which get the number.
        saved: the arguments that the reference was saved with.
        name: the reference, as messages name it.

    Raises:
        UserError: its experts do not divide over the run's ranks, or were chosen in a way that cannot be scored with.
    """
    flag, given = "--reference-expert-model-parallel-size", args.reference_expert_model_parallel_size
    own.expert_model_parallel_size = 1
    if own.num_experts is None:
        if given not in (None, 1):
            raise UserError(f"{flag} {given}: {name} has no experts; leave it out")
        return
    size = args.expert_model_parallel_size if given is None else given
    tp_size = args.expert_tensor_parallel_size or args.tensor_model_parallel_size
    layout = f"{name}: its {own.num_experts} experts"
    if size < 1 or own.num_experts % size:
        raise UserError(f"{layout} do not divide over {size} ranks; give {flag} a divisor of their number")
    ranks = size * tp_size * args.pipeline_model_parallel_size
    if args.world_size % ranks:
        raise UserError(
            f"{layout} take {size} x {tp_size} x {args.pipeline_model_parallel_size} ranks (expert x expert tensor x "
            f"pipeline parallelism), which do not divide the {args.world_size} of the run; change {flag}"
        )
    if own.moe_ffn_hidden_size % tp_size:
        raise UserError(
            f"{layout} have {own.moe_ffn_hidden_size} feed-forward units each, which do not divide over "
            f"--expert-tensor-parallel-size {tp_size}; change that"
        )
    balancing = getattr(saved, "moe_router_load_balancing_type", None) or ()
    unknown = _UNKNOWN_CHOICE.intersection([balancing] if isinstance(balancing, str) else balancing)
    if unknown:
        raise UserError(
            f"{layout} were trained with --moe-router-load-balancing-type {unknown.pop()}, which this program does not "
            "score with; use a reference that was trained with another one"
        )
    own.expert_model_parallel_size = size
