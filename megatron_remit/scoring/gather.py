"""Start the policy's parameter all-gather before a step is scored: it travels while the reference computes.

With ``--overlap-param-gather`` Megatron starts each bucket's all-gather when the forward pass needs the bucket before,
so the first one is waited for, and all of them share the network with the policy's own communication.
"""

from megatron.core.distributed import DistributedDataParallel
from torch.nn import Module


def start_param_gather(policy: list[Module] | Module) -> None:
    """Dispatch the all-gathers of all buckets of this rank's model chunks; the forward pass waits for each as always.

    Does nothing where Megatron gathers elsewhere: without the overlap, in the first step, aligned over the stages
    (``--align-param-gather``) or during the optimizer's step, and with Megatron's FSDP.
    """
    for chunk in policy if isinstance(policy, list) else [policy]:
        if not isinstance(chunk, DistributedDataParallel) or not chunk.ddp_config.overlap_param_gather:
            continue
        hooks_on = bool(chunk.remove_forward_pre_hook_handles)  # off means that the parameters are whole already
        elsewhere = chunk.ddp_config.align_param_gather or chunk.overlap_param_gather_with_optimizer_step
        buckets = chunk.bucket_groups + chunk.expert_parallel_bucket_groups
        if hooks_on and not elsewhere and not any(bucket.param_gather_dispatched for bucket in buckets):
            chunk.start_param_sync()
