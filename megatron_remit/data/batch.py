"""One microbatch on this rank: read on tensor-parallel rank 0, broadcast, cut for context parallelism.

Shape suffixes: B sequences of the microbatch, S sequence positions on this rank, W positions of the whole sequence.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any, TypedDict, cast

import torch
from megatron.core import mpu
from megatron.core.utils import get_batch_on_this_cp_rank, get_batch_on_this_tp_rank
from megatron.training import get_args
from torch import Tensor


class Batch(TypedDict, total=False):
    """The columns of a microbatch. A column of Megatron's is None on a pipeline stage that does not need it.

    An objective may add more (:meth:`megatron_remit.objectives.base.Objective.batch_columns`, or before a step in
    ``look_ahead``) under names of its own.
    """

    tokens: Tensor | None
    """[B, S] int64, for the first stage. Set here, from Megatron's dataset."""
    position_ids: Tensor | None
    """[B, S] int64, for the first stage. Set here."""
    attention_mask: Tensor | None
    """[B or 1, 1, S, W] bool, True = hidden; only with ``--reset-attention-mask``, else None. Set here. None too in a
    microbatch with ``visible``."""
    document_starts: Tensor
    """[B, W + 1] int32, on every stage: where the documents of each sequence begin, filled up with W; only with
    ``--dataloader-inter-document-masking``. Set here, from the dataset's ``cu_seqlens``."""
    visible: Tensor
    """[B, S, 2] int32: a step that is read ahead has this in place of ``attention_mask``. Set by
    :func:`with_visible_spans`."""
    labels: Tensor
    """[B, S] int64, on the last stage; None where no loss is computed. Set here."""
    loss_mask: Tensor
    """[B, S] float32, 1 for tokens that count, on the last stage; None where no loss is computed. Set here."""
    sample: Tensor
    """[B] int64, each sequence's place in the run. Set by ``scoring.ahead.read_step``."""
    reference_nll: Tensor
    """[B, S] float32, nats, on the last stage. Set by ``scoring.ahead`` from the reference, or here from a score store:
    then NaN throughout a row that the store lacks."""
    base_nll: Tensor
    """[B, S] float32, nats, on the last stage, for objectives with two references: the NLLs of the reference's base.
    Set by ``scoring.ahead`` from the model, or here from its score store."""
    score_key: Tensor | None
    """[B, 2] int64, the rows' keys in the score store, on tensor-parallel rank 0 of the last stage. Set here."""
    reference_hidden: Tensor
    """[B, S or S / TP, H] in the run's precision, on the last stage: KD's. Set by ``scoring.ahead``."""
    document_ids: Tensor
    """[B, S] int64, on the last stage, with ``--remit-centering document``. Set here, by ReMiT's ``batch_columns``."""
    selected: Tensor
    """[B, S] bool, for objectives that choose tokens of the global batch. Set by their ``look_ahead``."""
    weight: Tensor
    """[B, S] float32, on the last stage. Set by PriFT's ``look_ahead``."""
    source: Tensor | None
    """[B] int64, which corpus of a blend each sequence is of, on tensor-parallel rank 0 of the last stage; None
    elsewhere, and without a blend. Set here."""
    figures: dict[str, Tensor]
    """Values per token [B, S] by name, without gradients, until they are watched. Set by the objective's ``loss``
    (:func:`megatron_remit.objectives.base.keep_figures`)."""


_MEGATRONS = ("tokens", "labels", "loss_mask", "position_ids", "attention_mask")


def get_batch(
    data_iterator: Iterator[dict[str, Any]] | None,
    micro_batch_size: int,
    vp_stage: int | None = None,
    scored: Collection[str] = (),
    columns: Callable[[Tensor], dict[str, Tensor]] | None = None,
) -> Batch:
    """The next microbatch of ``data_iterator``, as this rank needs it (Megatron's ``get_batch_on_this_*_rank``).

    Args:
        data_iterator: None on ranks that read no data (:func:`megatron_remit.data.datasets.reads_data`).
        micro_batch_size: sizes the receive buffers of those ranks.
        vp_stage: the model chunk, with virtual pipeline stages.
        scored: the columns [B, W] that the samples bring along from score stores.
        columns: an objective's ``batch_columns``: called on the last stage with the whole sequences' labels [B, W].
    """
    args = get_args()
    first = mpu.is_pipeline_first_stage(ignore_virtual=vp_stage is None, vp_stage=vp_stage)
    last = mpu.is_pipeline_last_stage(ignore_virtual=vp_stage is None, vp_stage=vp_stage)
    packed = args.dataloader_inter_document_masking
    if not (first or last or packed):
        return cast(Batch, dict.fromkeys(_MEGATRONS))
    raw: dict[str, Any] | None = None
    if mpu.get_tensor_model_parallel_rank() == 0:
        assert data_iterator is not None, "the ranks of tensor-parallel rank 0 read the data"
        raw = {key: value.cuda(non_blocking=True) for key, value in next(data_iterator).items()}
    read = get_batch_on_this_tp_rank(
        raw,
        has_cu_seqlens=packed,
        is_hybrid_cp=False,
        create_attention_mask_in_dataloader=args.create_attention_mask_in_dataloader,
        broadcast_src_rank=mpu.get_tensor_model_parallel_src_rank(),
        broadcast_group=mpu.get_tensor_model_parallel_group(),
        cp_size=args.context_parallel_size,
        tp_rank=mpu.get_tensor_model_parallel_rank(),
        micro_batch_size=micro_batch_size,
        seq_length=args.seq_length,
        mtp_on_this_rank=False,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        is_pipeline_first_stage=first,
        is_pipeline_last_stage=last,
    )
    batch = {key: read.get(key) for key in _MEGATRONS}
    if columns is not None and last:
        batch |= columns(batch["labels"])
    if last:
        for name in scored:
            batch[name] = _broadcast_scores(None if raw is None else raw[name], micro_batch_size, args.seq_length)
    batch = get_batch_on_this_cp_rank(batch, is_hybrid_cp=False, cp_group=mpu.get_context_parallel_group())
    if packed:
        batch["document_starts"] = read["cu_seqlens"]
    if scored and last:
        batch["score_key"] = None if raw is None else raw["score_key"]
    if last:
        source_B = None if raw is None else raw.get("dataset_id")
        batch["source"] = None if source_B is None else source_B.long()
    return cast(Batch, batch)


def _broadcast_scores(nll_BW: Tensor | None, micro_batch_size: int, seq_length: int) -> Tensor:
    """A store's column on every tensor-parallel rank, from the first, which alone has it; Megatron's broadcast has a
    fixed list of keys."""
    if nll_BW is None:
        shape = (micro_batch_size, seq_length)
        nll_BW = torch.empty(shape, dtype=torch.float32, device=torch.cuda.current_device())
    group = mpu.get_tensor_model_parallel_group()
    torch.distributed.broadcast(nll_BW, mpu.get_tensor_model_parallel_src_rank(), group=group)
    return nll_BW


def regroup(batches: list[Batch], size: int, micro_batch_size: int) -> list[Batch]:
    """The same sequences in microbatches of ``size`` sequences, in order."""
    if size == micro_batch_size:
        return batches
    columns: dict[str, tuple[Tensor, ...] | None] = {}
    for key in batches[0]:
        values: list[Any] = [cast(dict, batch)[key] for batch in batches]
        columns[key] = None if values[0] is None else torch.cat(values).split(size)
    count = len(batches) * micro_batch_size // size
    groups = [{key: None if column is None else column[i] for key, column in columns.items()} for i in range(count)]
    return cast(list[Batch], groups)


def spans_of(mask_B1SW: Tensor) -> Tensor:
    """A document mask, in which True hides, as the first and the last position that each sees, [B, S, 2] int32.

    A step's microbatches are all read before the policy trains on the first, and a mask has one entry per pair of
    positions: at 16,384 tokens in rows of 4096 that is 64 MiB a microbatch, while the two numbers take 128 KiB. What a
    position sees must be all positions from the one to the other, as in causal attention inside documents.
    """
    visible_BSW = ~mask_B1SW.squeeze(1)
    # argmax of bool is not there on CUDA; of its bytes it gives the first of the largest.
    first_BS = visible_BSW.byte().argmax(-1)
    return torch.stack([first_BS, first_BS + visible_BSW.sum(-1) - 1], dim=-1).to(torch.int32)


def mask_of(spans_BS2: Tensor, width: int) -> Tensor:
    """The mask [B, 1, S, W] that :func:`spans_of` was given, with W = ``width``."""
    first_BS1, last_BS1 = spans_BS2.split(1, dim=-1)
    position_W = torch.arange(width, dtype=torch.int32, device=spans_BS2.device)
    return ((position_W < first_BS1) | (position_W > last_BS1)).unsqueeze(1)


def with_visible_spans(batch: Batch) -> Batch:
    """The microbatch with its mask, if it has one, as the two numbers per position of :func:`spans_of`."""
    mask = batch["attention_mask"]
    return batch if mask is None else {**batch, "attention_mask": None, "visible": spans_of(mask)}


def attention_mask_of(batch: Batch) -> Tensor | None:
    """The microbatch's mask [B, 1, S, W]; None where attention is causal."""
    if "visible" not in batch:
        return batch["attention_mask"]
    return mask_of(batch["visible"], batch["visible"].size(1) * mpu.get_context_parallel_world_size())


def set_column(batch: Batch, name: str, value: Tensor) -> None:
    """Add the column that an objective names."""
    cast(dict, batch)[name] = value
