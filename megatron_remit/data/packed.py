"""The documents of a row as sequences of their own: Megatron's packed format.

With ``--dataloader-inter-document-masking`` Megatron's dataset says where the documents of a row begin, as the corpus'
index has them (and not where a token says so, as ``--reset-attention-mask`` takes it). A microbatch goes through a
model as one sequence of all its rows, and attention stays within each document. No mask is made, so memory does not
grow with the square of the row, and Transformer Engine can do it.

Shape suffixes: B sequences of the microbatch, S their positions, D documents of the microbatch.
"""

import argparse

from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.utils import flatten_batch_for_packed_sequences
from torch import Tensor

from megatron_remit.data.batch import Batch
from megatron_remit.errors import UserError

FLAG = "--dataloader-inter-document-masking"


def check_packed(args: argparse.Namespace) -> None:
    """Refuse what cannot be done with packed documents.

    Raises:
        UserError: names the flags and what to do.
    """
    if args.reset_attention_mask or args.reset_position_ids:
        given = "--reset-attention-mask" if args.reset_attention_mask else "--reset-position-ids"
        raise UserError(f"{FLAG} with {given}: both keep documents apart, each in its own way; leave one of them out")
    if args.context_parallel_size > 1:
        raise UserError(
            f"{FLAG} with --context-parallel-size {args.context_parallel_size}: Megatron 0.19.2 divides each document "
            "over the ranks and its GPT dataset pads none to a length that divides; use --reset-attention-mask with "
            "--transformer-impl local"
        )
    sizes = {"--micro-batch-size": args.micro_batch_size, "--eval-micro-batch-size": args.eval_micro_batch_size}
    sizes["--reference-micro-batch-size"] = args.reference_micro_batch_size
    for flag, size in sizes.items():
        if (size or 1) > 1 and args.pipeline_model_parallel_size > 1:
            raise UserError(
                f"{FLAG} with {flag} {size} and --pipeline-model-parallel-size {args.pipeline_model_parallel_size}: "
                "the sequences of a microbatch become one, and the stages expect them side by side; pass 1"
            )
        if (size or 1) > 1 and args.objective == "kd":
            raise UserError(
                f"{FLAG} with {flag} {size} and --objective kd: the sequences of a microbatch become one, and kd keeps "
                "the reference's hidden states by sequence; pass 1"
            )


def documents_apart(args: argparse.Namespace) -> dict[str, bool]:
    """Whether attention and positions stop at the borders of documents: two fields of a score store's identity, which
    do not tell by which flag."""
    packed = args.dataloader_inter_document_masking
    return {
        "reset_attention_mask": packed or args.reset_attention_mask,
        "reset_position_ids": packed or args.reset_position_ids,
    }


def packed_columns(batch: Batch) -> tuple[dict[str, Tensor | None], PackedSeqParams | None]:
    """What ``GPTModel.forward`` reads of the microbatch, [1, B * S] each, and where its documents are.

    A batch without borders comes back as it is, [B, S], with None. The borders are read on the host
    (Megatron's ``flatten_batch_for_packed_sequences``).
    """
    columns = {name: batch[name] for name in ("tokens", "position_ids", "labels", "loss_mask")}
    starts = batch.get("document_starts")
    if starts is None:
        return columns, None
    flat = flatten_batch_for_packed_sequences({**columns, "cu_seqlens": starts})
    starts_D1 = flat["cu_seqlens"].squeeze(0)
    length = int(starts_D1.diff().max())
    params = PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=starts_D1, cu_seqlens_kv=starts_D1, max_seqlen_q=length, max_seqlen_kv=length
    )
    return {name: flat[name] for name in columns}, params
