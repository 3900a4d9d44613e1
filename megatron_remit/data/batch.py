"""One microbatch on this rank: read on tensor-parallel rank 0, broadcast, cut for context parallelism.

Keys: ``tokens``, ``labels``, ``position_ids`` [b, s] int64, ``loss_mask`` [b, s] float32, ``attention_mask`` or None.
A pipeline stage that needs a key not has None there. ``reference_nll`` [b, s] float32 (nats) is added by score-ahead,
``document_ids`` [b, s] int64 where the labels are, with ``--remit-centering document``. With a score store
``reference_nll`` is read from it on the last stage: NaN in rows that it lacks, and on tensor-parallel rank 0 the rows'
keys are beside it, ``score_key`` [b, 2] int64.
"""

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.utils import get_batch_on_this_cp_rank, get_batch_on_this_tp_rank
from megatron.training import get_args, get_tokenizer
from torch import Tensor

from megatron_remit.objectives.math.documents import document_ids

_KEYS = ("tokens", "labels", "loss_mask", "position_ids", "attention_mask")

Batch = dict[str, Tensor | None]


def get_batch(
    data_iterator: Iterator[dict[str, Any]] | None,
    micro_batch_size: int,
    vp_stage: int | None = None,
    scored: bool = False,
) -> Batch:
    """The next microbatch of ``data_iterator``, as this rank needs it (Megatron's ``get_batch_on_this_*_rank``).

    ``data_iterator`` is None on ranks that read no data (tensor-parallel rank above 0, middle pipeline stages);
    ``micro_batch_size`` sizes their receive buffers. ``scored``: the samples come with the columns of a score store.
    """
    args = get_args()
    first = mpu.is_pipeline_first_stage(ignore_virtual=vp_stage is None, vp_stage=vp_stage)
    last = mpu.is_pipeline_last_stage(ignore_virtual=vp_stage is None, vp_stage=vp_stage)
    if not first and not last:
        return dict.fromkeys(_KEYS)
    raw: dict[str, Any] | None = None
    if mpu.get_tensor_model_parallel_rank() == 0:
        raw = {key: value.cuda(non_blocking=True) for key, value in next(data_iterator).items()}
    batch = get_batch_on_this_tp_rank(
        raw,
        has_cu_seqlens=False,
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
    kept = {key: batch.get(key) for key in _KEYS}
    if args.objective == "remit" and args.remit_centering == "document" and last:
        # Borders are counted over the whole sequence, before it is cut for context parallelism.
        kept["document_ids"] = document_ids(kept["labels"], get_tokenizer().eod)
    if scored and last:
        kept["reference_nll"] = _broadcast_scores(raw, micro_batch_size)
    kept = get_batch_on_this_cp_rank(kept, is_hybrid_cp=False, cp_group=mpu.get_context_parallel_group())
    if scored and last:
        kept["score_key"] = None if raw is None else raw["score_key"]
    return kept


def _broadcast_scores(raw: dict[str, Any] | None, micro_batch_size: int) -> Tensor:
    """The column ``reference_nll`` on every tensor-parallel rank; Megatron's broadcast has a fixed list of keys."""
    if raw is None:
        shape = (micro_batch_size, get_args().seq_length)
        nll_BS = torch.empty(shape, dtype=torch.float32, device=torch.cuda.current_device())
    else:
        nll_BS = raw["reference_nll"]
    group = mpu.get_tensor_model_parallel_group()
    torch.distributed.broadcast(nll_BS, mpu.get_tensor_model_parallel_src_rank(), group=group)
    return nll_BS
