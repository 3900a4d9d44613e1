"""A rank that builds and loads policy and reference as a run does, with Transformer Engine's layers, up to step 1."""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import torch
from megatron.core import mpu
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factories
from megatron.core.utils import unwrap_model
from megatron.training import training
from torch.distributed.checkpoint import FileSystemReader

from megatron_remit.programs import train


class _Stop(Exception):
    pass


def build(rank, root, out, flags):
    """Write what the models asked of the checkpoint ``root``, and what it holds, to ``out``."""
    built = {}
    build_reference = train.build_reference

    def stop(_forward_step, model, *_, **__):
        built["policy"] = model
        raise _Stop

    def kept(args):
        built["reference"] = build_reference(args)
        return built["reference"]

    training.train, train.build_reference = stop, kept
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"  # a job's environment is its own; the CPU's stand-in is there
    sys.argv = ["pretrain", *flags]
    try:
        train.main()
    except _Stop:
        pass
    if rank == 0:
        stored = FileSystemReader(str(Path(root) / "release")).read_metadata().state_dict_metadata
        report = {
            "tensors": {key: list(value.size) for key, value in stored.items() if hasattr(value, "size")},
            "objects": sorted(key for key, value in stored.items() if not hasattr(value, "size")),
            "models": {name: _described(chunks) for name, chunks in built.items()},
        }
        policy, reference = (dict(unwrap_model(built[name])[0].named_parameters()) for name in ("policy", "reference"))
        report["equal"] = all(torch.equal(value, reference[name]) for name, value in policy.items())
        report["norms of ones"] = [n for n, value in policy.items() if "norm" in n and value.float().eq(1).all()]
        Path(out).write_text(json.dumps(report))


def _described(chunks):
    """The tensors that a model asks a checkpoint for, by name and whole shape, and its kinds of layers."""
    model = unwrap_model(chunks)[0]
    model.ddp_config = SimpleNamespace(use_megatron_fsdp=False)
    metadata = {"dp_cp_group": mpu.get_data_parallel_group(with_context_parallel=True), "singleton_local_shards": False}
    state = model.sharded_state_dict(metadata=metadata)
    apply_factories(state)  # the two halves of SwiGLU's projection
    asked = list(nested_values(state))
    tensors = [one for one in asked if isinstance(one, ShardedTensor)]
    return {
        "tensors": {one.key: list(one.global_shape) for one in tensors},
        "any rows": [one.key for one in tensors if one.allow_shape_mismatch],
        "objects": sorted(one.unique_key for one in asked if isinstance(one, ShardedObject)),
        "layers": Counter(f"{type(module).__module__}.{type(module).__name__}" for module in model.modules()),
    }
