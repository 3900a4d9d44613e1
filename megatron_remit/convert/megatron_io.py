"""Megatron torch_dist checkpoints: one process finds, checks and reads them without building the model.

A layered tensor is stored with the layer as its first axis, as Megatron's own ``TransformerBlock.sharded_state_dict``
describes it, and an expert's with the expert as its next one. Its shards are those of the run that wrote it; an import
writes one per layer and expert.
"""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_remit.convert.rules import Place
from megatron_remit.errors import UserError
from megatron_remit.trust.loading import TRACKER, check_iteration, existing, iteration_name
from megatron_remit.trust.pickles import read_common_state, read_metadata, shard_path


class CheckpointReader:
    """One iteration of a Megatron checkpoint folder: its arguments, and its tensors one at a time.

    Optimizer state is never read.

    Raises:
        UserError: the folder has no such iteration, is not torch_dist or holds no arguments, a file is missing, shorter
            than the metadata says or not what its digest says, or a pickle names what is not on the lists.
    """

    def __init__(self, folder: Path, iteration: int | None = None, skip_digests: bool = False) -> None:
        self.path = iteration_folder(folder, iteration)
        self._metadata = check_shards(self.path)
        check_iteration(self.path, skip_digests)
        self._storage = FileSystemReader(str(self.path))
        self._storage.set_up_storage_reader(self._metadata, is_coordinator=True)
        common = read_common_state(self.path, self._metadata)
        if "args" not in common:
            raise UserError(f"{self.path}: the checkpoint holds no training arguments; save it with Megatron's loop")
        self.arguments: Namespace = common["args"]
        self._by_index: dict[str, dict[tuple[int, ...], list[ChunkStorageMetadata]]] = {}

    def stored(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """The shape (with the layer axis if there is one) and dtype of a stored tensor; UserError if it is missing."""
        entry = self._entry(name)
        return tuple(entry.size), entry.properties.dtype

    def _entry(self, name: str) -> TensorStorageMetadata:
        entry = self._metadata.state_dict_metadata.get(name)
        if not isinstance(entry, TensorStorageMetadata):
            raise UserError(f"{self.path}: tensor {name} is missing")
        return entry

    def _entry_at(self, place: Place) -> TensorStorageMetadata:
        """The entry of a tensor with the chunks of ``place`` alone: torch looks at all that it is given, and a tensor
        of all layers and experts has many thousands."""
        entry, axes = self._entry(place.name), len(place.index)
        if place.name not in self._by_index:
            grouped: dict[tuple[int, ...], list[ChunkStorageMetadata]] = {}
            for chunk in entry.chunks:
                grouped.setdefault(tuple(chunk.offsets[:axes]), []).append(chunk)
            apart = all(size == 1 for chunk in entry.chunks for size in chunk.sizes[:axes])
            self._by_index[place.name] = grouped if apart else {}
        return replace(entry, chunks=self._by_index[place.name].get(place.index, entry.chunks))

    def read(self, place: Place, shape: tuple[int, ...]) -> torch.Tensor:
        """The entry ``place`` of a tensor: of ``shape``, in the dtype in which it is stored.

        In addition to the result, one stored shard at a time is in memory.

        Raises:
            UserError: the tensor is missing, has another shape, or its bytes are damaged.
        """
        name, whole = place.name, (*place.counts, *shape)
        found, dtype = self.stored(name)
        if found != whole:
            raise UserError(f"{self.path}: tensor {name} has shape {list(found)}, expected {list(whole)}")
        offsets = (*place.index, *(0 for _ in shape))
        tensor = torch.empty((*(1 for _ in place.index), *shape), dtype=dtype)
        chunk = ChunkStorageMetadata(torch.Size(offsets), tensor.shape)
        items = create_read_items_for_chunk_list(name, self._entry_at(place), [chunk])
        try:
            self._storage.read_data(LoadPlan(items), _IntoTensor(tensor)).wait()
        except Exception as error:  # damaged bytes raise whatever they lead to
            raise UserError(f"{self.path}: tensor {name} cannot be read ({type(error).__name__}: {error})") from None
        return tensor.view(shape)


class _IntoTensor(DefaultLoadPlanner):
    """Writes the parts that are read into their places in ``tensor``."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self._tensor = tensor

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        part = self._tensor
        for axis, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            part = part.narrow(axis, start, length)
        return part

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """Do nothing: ``tensor`` is a view of the result."""


def iteration_folder(folder: Path, iteration: int | None = None) -> Path:
    """The folder of ``iteration``, or of the one that the tracker file names if it is None.

    Raises:
        UserError: there is no such folder, or no readable tracker file.
    """
    name = iteration_name(folder, iteration)
    if name is None:
        raise UserError(f"{folder / TRACKER}: no such file; expected a Megatron checkpoint folder")
    return existing(folder / name)


def check_shards(path: Path) -> Metadata:
    """The metadata of the torch_dist checkpoint at ``path``, after a check that its files are there and long enough.

    Only the sizes are read, so this is cheap for a checkpoint of any size.

    Raises:
        UserError: a file is missing, truncated or damaged; the message names it.
    """
    if not dist_checkpointing.check_is_distributed_checkpoint(str(path)):
        raise UserError(f"{path}: not a complete torch_dist checkpoint (metadata.json is missing or damaged)")
    metadata = read_metadata(path)
    needed: dict[str, int] = {}
    for item in (metadata.storage_data or {}).values():
        needed[item.relative_path] = max(needed.get(item.relative_path, 0), item.offset + item.length)
    for name, size in sorted(needed.items()):
        if not shard_path(path, name).is_file():
            raise UserError(f"{path / name}: no such file, though the checkpoint's metadata names it")
        found = (path / name).stat().st_size
        if found < size:
            raise UserError(f"{path / name}: truncated, {found} bytes of at least {size}; copy the checkpoint again")
    return metadata
