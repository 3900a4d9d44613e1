"""The process groups of the reference: the policy's, but for experts that another number of ranks shares."""

import argparse
from datetime import timedelta

import torch
from megatron.core import mpu
from megatron.core.parallel_state import RankGenerator
from megatron.core.process_groups_config import ProcessGroupCollection

# The groups that Megatron's layers with experts work with, by their axes (``mpu.initialize_model_parallel``).
_AXES = {"ep": "ep", "expt_tp": "tp", "tp_ep": "tp-ep", "tp_ep_pp": "tp-ep-pp", "expt_dp": "dp"}


def process_groups(reference_args: argparse.Namespace) -> ProcessGroupCollection:
    """The groups that the reference's layers communicate in. All ranks of the run call it.

    The policy's groups serve as long as both share their experts alike; else groups are made for the reference's
    experts, over the same ranks and in Megatron's order of them.
    """
    groups = ProcessGroupCollection.use_mpu_process_groups()
    size = reference_args.expert_model_parallel_size
    if size == mpu.get_expert_model_parallel_world_size():
        return groups
    tp_size, stages = mpu.get_expert_tensor_parallel_world_size(), mpu.get_pipeline_model_parallel_world_size()
    ranks = RankGenerator(
        tp=tp_size,
        ep=size,
        dp=torch.distributed.get_world_size() // (tp_size * size * stages),
        pp=stages,
        cp=1,
        order="tp-cp-ep-pp-dp" if reference_args.use_tp_pp_dp_mapping else "tp-cp-ep-dp-pp",
    )
    timeout = timedelta(minutes=reference_args.distributed_timeout_minutes)
    for name, axes in _AXES.items():
        setattr(groups, name, _own_group(ranks.get_ranks(axes), timeout))
    groups.intra_expt_dp = groups.expt_dp_gtp_remat = groups.expt_dp
    groups.tp_ep_pp_with_egtp_remat = groups.tp_ep_pp
    return groups


def _own_group(all_ranks: list[list[int]], timeout: timedelta) -> torch.distributed.ProcessGroup:
    """Make every one of the groups, as all ranks must, and return that of this rank."""
    here = torch.distributed.get_rank()
    made = [(ranks, torch.distributed.new_group(ranks, timeout=timeout)) for ranks in all_ranks]
    return next(group for ranks, group in made if here in ranks)
