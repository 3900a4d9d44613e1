"""Megatron torch_dist checkpoints, written and read by one process without building the model.

A layered tensor is stored with the layer as its first axis and every layer as one shard of it: what Megatron's own
``TransformerBlock.sharded_state_dict`` describes, so its loader reshards the file to any TP x PP.
"""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata

from megatron_remit import host
from megatron_remit.errors import UserError

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
# How Megatron's loader is to lay out its request; the same values a training run of 0.19.2 stores.
_CONTENT_METADATA = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}


@contextmanager
def single_process() -> Iterator[None]:
    """torch.distributed with one rank, which Megatron's checkpoint functions ask for; left as found."""
    host.install()
    started = not torch.distributed.is_initialized()
    if started:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        if started:
            torch.distributed.destroy_process_group()


class ReleaseWriter:
    """Collects the shards of a checkpoint without optimizer state, then writes them as ``FOLDER/release``."""

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._state: dict[str, Any] = {}

    def add(self, name: str, tensor: torch.Tensor, layer: int | None) -> None:
        """``tensor`` is the whole of ``name``, or its entry for ``layer``."""
        self._state[f"{name}/{layer}"] = _shard(name, tensor, layer, self._num_layers)

    def add_empty_extra_state(self, module: str) -> None:
        """The per-layer object that Megatron's linear and Transformer Engine's modules look for; None = no state."""
        for layer in range(self._num_layers):
            key = f"{module}._extra_state"
            self._state[f"{key}/{layer}"] = ShardedObject(key, None, (self._num_layers,), (layer,))

    def write(self, folder: Path, arguments: dict[str, Any]) -> None:
        """Write ``FOLDER/release`` with ``arguments`` as its Namespace, then the tracker file that names it."""
        (folder / RELEASE).mkdir(parents=True)
        common = {"args": Namespace(**arguments), "checkpoint_version": 3.0, "iteration": 0}
        with single_process():
            dist_checkpointing.save(
                self._state | common, str(folder / RELEASE), content_metadata=dict(_CONTENT_METADATA)
            )
        (folder / TRACKER).write_text(RELEASE, encoding="utf-8")


class CheckpointReader:
    """One iteration of a Megatron checkpoint folder: its arguments, and its tensors one at a time.

    Raises :class:`UserError` if the folder has no such iteration, is not torch_dist, or a shard file is missing or
    shorter than the metadata says. Optimizer state is never read.
    """

    def __init__(self, folder: Path, iteration: int | None = None) -> None:
        self.path = iteration_folder(folder, iteration)
        self._metadata = check_shards(self.path)
        self._storage = FileSystemReader(str(self.path))
        common = dist_checkpointing.load_common_state_dict(str(self.path))
        if "args" not in common:
            raise UserError(f"{self.path}: the checkpoint holds no training arguments; save it with Megatron's loop")
        self.arguments: Namespace = common["args"]

    def stored(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape (with the layer axis if there is one) and dtype of a stored tensor."""
        entry = self._metadata.state_dict_metadata.get(name)
        if entry is None:
            raise UserError(f"{self.path}: tensor {name} is missing")
        return tuple(entry.size), entry.properties.dtype

    def read(self, name: str, expected: tuple[int, ...]) -> torch.Tensor:
        """The whole tensor ``name`` (all layers), of the ``expected`` shape, in the dtype it is stored in."""
        found, dtype = self.stored(name)
        if found != expected:
            raise UserError(f"{self.path}: tensor {name} has shape {list(found)}, expected {list(expected)}")
        tensor = torch.empty(found, dtype=dtype)
        try:
            torch.distributed.checkpoint.load({name: tensor}, storage_reader=self._storage, no_dist=True)
        except torch.distributed.checkpoint.CheckpointException as error:
            raise UserError(f"{self.path}: tensor {name} cannot be read: {error}") from None
        return tensor


def _shard(name: str, tensor: torch.Tensor, layer: int | None, num_layers: int) -> ShardedTensor:
    if layer is None:
        return ShardedTensor.from_rank_offsets(name, tensor)
    return ShardedTensor.from_rank_offsets(name, tensor, (0, layer, num_layers), prepend_axis_num=1)


def iteration_folder(folder: Path, iteration: int | None = None) -> Path:
    """The folder of ``iteration`` (None: the one that the tracker file names); :class:`UserError` if not there."""
    if iteration is None:
        if not (folder / TRACKER).is_file():
            raise UserError(f"{folder / TRACKER}: no such file; expected a Megatron checkpoint folder")
        latest = (folder / TRACKER).read_text(encoding="utf-8").strip()
        if latest != RELEASE and not latest.isdigit():
            raise UserError(f"{folder / TRACKER}: found {latest!r}; expected an iteration number or {RELEASE!r}")
        name = RELEASE if latest == RELEASE else f"iter_{int(latest):07d}"
    else:
        name = f"iter_{iteration:07d}"
    path = folder / name
    if not path.is_dir():
        present = sorted(entry.name for entry in folder.glob("iter_*"))
        raise UserError(f"{path}: no such checkpoint; the folder holds {', '.join(present) or 'none'}")
    return path


def check_shards(path: Path) -> Metadata:
    """The metadata of the torch_dist checkpoint at ``path``, once every file it names is there and long enough.

    Raises :class:`UserError` naming the file otherwise. Reads sizes only, so it is cheap for any checkpoint.
    """
    if not dist_checkpointing.check_is_distributed_checkpoint(str(path)):
        raise UserError(f"{path}: not a complete torch_dist checkpoint (metadata.json is missing or damaged)")
    try:
        metadata = FileSystemReader(str(path)).read_metadata()
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise UserError(f"{path / '.metadata'}: missing or damaged ({type(error).__name__}: {error})") from None
    needed: dict[str, int] = {}
    for item in (metadata.storage_data or {}).values():
        needed[item.relative_path] = max(needed.get(item.relative_path, 0), item.offset + item.length)
    for name, size in sorted(needed.items()):
        if not (path / name).is_file():
            raise UserError(f"{path / name}: no such file, though the checkpoint's metadata names it")
        found = (path / name).stat().st_size
        if found < size:
            raise UserError(f"{path / name}: truncated, {found} bytes of at least {size}; copy the checkpoint again")
    return metadata
