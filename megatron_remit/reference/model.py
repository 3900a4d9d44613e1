"""The frozen reference on the policy's own ranks: no optimizer state, no gradient buffers, outside the checkpoints."""

import argparse
import contextlib
import random
from collections.abc import Iterator

import numpy
import torch
from megatron.core import dist_checkpointing, mpu, tensor_parallel
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.utils import unwrap_model
from megatron.training import print_rank_0
from torch.nn import Module

from megatron_remit.errors import UserError
from megatron_remit.reference.checkpoint import checkpoint_folder
from megatron_remit.reference.groups import process_groups
from megatron_remit.reference.offload import offload
from megatron_remit.specs.native import gpt_config


def build_reference(reference_args: argparse.Namespace) -> list[Module]:
    """The reference's model chunks of this pipeline rank, loaded, in ``eval`` mode, without gradients.

    The reference has a config object of its own: Megatron attaches the policy's gradient-synchronisation hooks and
    timers to the policy's config, and a forward pass of the reference must not reach them. The random states are the
    same afterwards.

    Raises:
        UserError: the checkpoint lacks a tensor of the model or holds one of another shape.
    """
    with _random_state_kept():
        config = gpt_config(reference_args)
        config.transformer.perform_initialization = False
        config.transformer.timers = None
        builder = config.get_builder_cls()(config)
        chunks = builder.build_distributed_models(
            pg_collection=process_groups(reference_args),
            wrap_with_ddp=False,
            data_parallel_random_init=False,
        )
    for chunk in chunks:
        # With --use-cpu-initialization Megatron leaves the way to the GPU to the buffers of its gradients.
        chunk.cuda(torch.cuda.current_device())
        chunk.eval()
        chunk.requires_grad_(False)
    for model in unwrap_model(chunks):
        if model.pre_process:
            model.embedding.register_forward_hook(_with_plain_strides)
    _load(chunks, reference_args)
    if reference_args.reference_offload:
        offload(chunks)
    return chunks


def _with_plain_strides(_module: Module, _inputs: object, output_SBH: torch.Tensor) -> torch.Tensor:
    """The strides of a contiguous tensor, which one sequence alone has not: it is the embedding's [B, S, H], turned.

    torch.matmul looks at strides and at whether the weight has a gradient: for such an input the policy's product is
    one of matrices, and the reference's would be one per token, slower and of other bits.
    """
    return output_SBH.reshape(-1).view(output_SBH.shape)


def _load(chunks: list[Module], reference_args: argparse.Namespace) -> None:
    folder = str(checkpoint_folder(reference_args.reference_load, reference_args.reference_flag))
    print_rank_0(f"> loading the reference from {folder} ...")
    metadata = dist_checkpointing.load_content_metadata(folder) or {}
    metadata["dp_cp_group"] = mpu.get_data_parallel_group(with_context_parallel=True)
    models = unwrap_model(chunks)
    sharded = {f"model{i}": model.sharded_state_dict(metadata=metadata) for i, model in enumerate(models)}
    try:
        loaded = dist_checkpointing.load(sharded, folder)
    except (CheckpointingException, RuntimeError, KeyError, ValueError, OSError) as error:
        raise UserError(
            f"{reference_args.reference_flag} {reference_args.reference_load}: its tensors do not fit the model that "
            f"its own arguments describe ({error}); import the reference again"
        ) from error
    for i, model in enumerate(models):
        model.load_state_dict(loaded[f"model{i}"], strict=True)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restore every random state that Megatron's model code draws from."""
    tracker = tensor_parallel.get_cuda_rng_tracker()
    before = (random.getstate(), numpy.random.get_state(), torch.get_rng_state(), torch.cuda.get_rng_state())
    tracked = {name: _copied(state) for name, state in tracker.get_states().items()}
    try:
        yield
    finally:
        random.setstate(before[0])
        numpy.random.set_state(before[1])
        torch.set_rng_state(before[2])
        torch.cuda.set_rng_state(before[3])
        tracker.set_states(tracked)


def _copied(state: torch.Tensor | torch.Generator) -> torch.Tensor | torch.Generator:
    """The trackers of ``--te-rng-tracker`` and of CUDA graphs hold generators, Megatron's own their states."""
    return state.clone_state() if isinstance(state, torch.Generator) else state.clone()
