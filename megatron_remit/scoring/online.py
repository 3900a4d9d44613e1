"""Rows that the store lacks: which microbatches the reference must score, and where the scores go.

Shape suffixes: B sequences of a reference microbatch, S sequence positions on this rank.
"""

import argparse

import torch
from megatron.core import mpu
from megatron.core.utils import get_model_config
from torch import Tensor
from torch.nn import Module

from megatron_remit.data.batch import Batch
from megatron_remit.parallel import whole_sequence
from megatron_remit.scoring.session import start_writer


def shares_experts(reference: list[Module]) -> bool:
    """Whether data-parallel ranks may hold parts of one reference, so that all of them must run it at the same time."""
    return bool(reference) and get_model_config(reference[0]).expert_model_parallel_size > 1


def missing_groups(groups: list[Batch], args: argparse.Namespace, together: bool) -> list[int]:
    """Which reference microbatches hold a row that the store lacks; the same on every rank of a model replica.

    Only the last stage knows, and context-parallel ranks may differ while another job fills the store, so the ranks
    agree on the union. Data-parallel ranks score different numbers of microbatches, as the reference has no collective
    over them; where they share its experts it has, and the union is over all of them (``together``). The interleaved
    schedule needs a multiple of the stages: others are scored again to fill up.
    """
    flags = torch.zeros(len(groups), dtype=torch.int32, device=torch.cuda.current_device())
    for number, group in enumerate(groups):
        nll_BS = group.get("reference_nll")
        if nll_BS is not None:
            flags[number] = nll_BS.isnan().any()
    agree_on_maximum(flags, together)
    wanted = [number for number, flag in enumerate(flags.tolist()) if flag]
    if args.virtual_pipeline_model_parallel_size and wanted:
        stages = args.pipeline_model_parallel_size
        others = [number for number in range(len(groups)) if number not in wanted]
        wanted = sorted(wanted + others[: -len(wanted) % stages])
    return wanted


def agree_on_maximum(values: Tensor, together: bool = False) -> None:
    """The maximum over the ranks that run one model replica on one batch, or over all ranks, in place."""
    if together:
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
        return
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group=mpu.get_model_parallel_group())
    if mpu.get_context_parallel_world_size() > 1:
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group=mpu.get_context_parallel_group())


def filled(groups: list[Batch], wanted: list[int], scored: list[Tensor], args: argparse.Namespace) -> list[Tensor]:
    """The NLLs [B, S] of every group on the last stage, nats: from the store, and where it lacks a row from ``scored``,
    the reference's NLLs of the groups ``wanted``. Elsewhere nothing.

    With ``--score-store-write`` the rows that the store lacks go to it.
    """
    if groups[0].get("reference_nll") is None:
        return []
    nlls = [group["reference_nll"] for group in groups]
    for number, scored_BS in zip(wanted, scored, strict=True):
        missing_B = nlls[number].isnan().any(dim=1)
        nlls[number] = torch.where(missing_B[:, None], scored_BS, nlls[number])
        if args.score_store_write:
            _write(groups[number]["score_key"], missing_B, scored_BS, args)
    return nlls


def _write(key_B2: Tensor | None, missing_B: Tensor, nll_BS: Tensor, args: argparse.Namespace) -> None:
    whole_BS = whole_sequence(nll_BS, mpu.get_context_parallel_group())
    writer = start_writer(args)
    if writer is None or key_B2 is None:
        return  # the keys are where the writer is
    for row in missing_B.nonzero().flatten().tolist():
        writer.add(key_of(key_B2[row]), whole_BS[row].cpu().numpy())


def key_of(high_low: Tensor) -> tuple[int, int]:
    """The key in its two int64 halves (``score_key``), as unsigned numbers."""
    high, low = (value % (1 << 64) for value in high_low.tolist())
    return high, low
