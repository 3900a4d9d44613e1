"""Writes a torch_dist checkpoint that is never whole in memory: each tensor is made when its turn comes, then dropped.

Megatron's own ``dist_checkpointing.save`` takes a state dict of tensors that are all in memory. Here torch's planner
gets the names, shapes and dtypes first, and asks for one tensor after the other while it writes.
"""

import io
import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future
from tqdm import tqdm

from megatron_remit.convert.rules import Place
from megatron_remit.errors import UserError
from megatron_remit.trust.loading import RELEASE, TRACKER

# How Megatron's loader lays out its request: the values that a training run of 0.19.2 stores.
_CONTENT_METADATA = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
_SHARD_FILE = "__0_0.distcp"

Make = Callable[[], torch.Tensor]


class ReleaseWriter:
    """Lists the tensors of a checkpoint without optimizer state, then writes them as ``FOLDER/release``."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._items: list[WriteItem] = []
        self._make: dict[MetadataIndex, Make] = {}
        self._objects: dict[MetadataIndex, Any] = {}

    def add(self, place: Place, shape: tuple[int, ...], make: Make) -> None:
        """The entry ``place`` of a tensor; ``make`` returns it, of ``shape``, when it is to be written."""
        size, whole = (*(1 for _ in place.index), *shape), (*place.counts, *shape)
        offsets = (*place.index, *(0 for _ in shape))
        index = MetadataIndex(place.name, torch.Size(offsets))
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(size))
        data = TensorWriteData(chunk, TensorProperties(dtype=self._dtype), torch.Size(whole))
        self._items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))
        self._make[index] = lambda: make().reshape(size)

    def add_empty_extra_state(self, place: Place) -> None:
        """Add the empty object that linear modules and Transformer Engine's look for."""
        name, counts, index = f"{place.name}._extra_state", place.counts or (1,), place.index or (0,)
        self._add_object(ShardedObject(name, None, counts, index))

    def write(self, folder: Path, arguments: dict[str, Any]) -> None:
        """Write ``FOLDER/release`` with ``arguments`` as its Namespace, then the tracker file that names it.

        Raises UserError as the tensors' ``make``, and OSError or RuntimeError where it cannot be written.
        """
        release = folder / RELEASE
        release.mkdir(parents=True)
        common = {"args": Namespace(**arguments), "checkpoint_version": 3.0, "iteration": 0}
        common["content_metadata"] = dict(_CONTENT_METADATA)
        self._add_object(ShardedObject("common_state", common, (1,), (0,)))
        planner = _LazyPlanner(self._items, self._make, self._objects)
        try:
            dcp.save({}, storage_writer=_OneByOneWriter(str(release)), planner=planner, no_dist=True)
        except dcp.api.CheckpointException as error:
            (cause, _), *_ = error.failures.values()
            # A tensor that could not be made, or a disk that is full: what the command above knows to say.
            if isinstance(cause, (UserError, OSError, RuntimeError)):
                raise cause from None
            raise
        save_config(CheckpointingConfig("torch_dist", 1), str(release))
        (folder / TRACKER).write_text(RELEASE, encoding="utf-8")

    def _add_object(self, sharded: ShardedObject) -> None:
        index = MetadataIndex(sharded.unique_key)
        self._items.append(WriteItem(index, WriteItemType.BYTE_IO))
        self._objects[index] = sharded.data


class _LazyPlanner(SavePlanner):
    """Hands out the items to write, one at a time, and keeps none of them."""

    def __init__(
        self, items: list[WriteItem], make: dict[MetadataIndex, Make], objects: dict[MetadataIndex, Any]
    ) -> None:
        self._items, self._make, self._objects = items, make, objects

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: Any = None, is_coordinator: bool = False
    ) -> None:
        """Do nothing: the items are known, and there is no state dict."""

    def create_local_plan(self) -> SavePlan:
        return SavePlan(self._items)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type == WriteItemType.SHARD:
            return self._make[write_item.index]()
        content = io.BytesIO()
        # Megatron stores an object as a list with one entry per shard of this key.
        torch.save([self._objects[write_item.index]], content)
        return content


class _OneByOneWriter(dcp.FileSystemWriter):
    """A writer that keeps no tensor, where torch's keeps the last one of each name until its file is closed."""

    def storage_meta(self) -> StorageMeta:
        """Nothing: torch's writer puts the temporary path and a random number here, and two imports would differ."""
        return StorageMeta()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = []
        with open(Path(self.path) / _SHARD_FILE, "wb") as stream:
            for item in tqdm(plan.items, desc="writing tensors", unit="tensor", disable=None):
                start = stream.tell()
                data = planner.resolve_data(item)
                if isinstance(data, io.BytesIO):
                    stream.write(data.getbuffer())
                else:
                    torch.save(data, stream)
                length = stream.tell() - start
                # The name is private, but torch pickles this class into the .metadata of every checkpoint.
                place = _StorageInfo(_SHARD_FILE, start, length)
                results.append(WriteResult(index=item.index, size_in_bytes=length, storage_data=place))
            stream.flush()
            os.fsync(stream.fileno())
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future
