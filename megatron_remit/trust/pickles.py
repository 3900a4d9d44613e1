"""A checkpoint's pickles, read with lists of the classes that they may name.

A pickle names what is called while it is read, so a crafted one runs any code. A torch_dist checkpoint holds two kinds:

- ``.metadata``, a plain pickle: read here with a list of the classes that torch and Megatron put into it.
- objects among the tensors (``common_state``, ``rng_state``, the optimizer's, ``_extra_state``), written by
  ``torch.save``: read with ``weights_only=True``, which has torch's own list and that of Megatron
  (``megatron.core.safe_globals``). torch's loader of checkpoints asks for ``weights_only=False``. The bytes in them may
  be pickles once more: see :mod:`~megatron_remit.trust.extra_states`.

Tensors themselves are read with ``weights_only=True`` by torch.
"""

import functools
import io
import pickle
import re
from pathlib import Path
from typing import IO, Any

import torch
from megatron.core import safe_globals  # noqa: F401  its list is registered with torch when Megatron is imported
from torch.distributed.checkpoint import DefaultLoadPlanner, Metadata, filesystem
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from megatron_remit.errors import UserError
from megatron_remit.trust.extra_states import check_bytes

METADATA = ".metadata"
COMMON = "common_state/shard_0_1"
LEGACY_COMMON = "common.pt"
FLAG = "--trust-checkpoint"

_METADATA_CLASSES = frozenset(
    {
        *((f"torch.distributed.checkpoint.{module}", name) for module, names in (
            ("filesystem", ("_StorageInfo", "_StoragePrefix")),
            ("metadata", (
                "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
                "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
            )),
            ("planner", ("BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")),
            ("_extension", ("StreamTransformExtension",)),
        ) for name in names),
        ("collections", "OrderedDict"),
        ("pathlib", "Path"),
        ("pathlib", "PosixPath"),
        ("pathlib._local", "PosixPath"),  # Python 3.13
        ("torch", "Size"),
        ("torch", "device"),
        ("torch.serialization", "_get_layout"),
    }
)  # fmt: skip


_NAMED = re.compile(r"GLOBAL (\S+)")
_trusted = False


class _Allowed(pickle.Unpickler):
    """Reads a pickle that names nothing but the classes of ``.metadata``, and torch's dtypes."""

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or (module, name) in _METADATA_CLASSES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not on the list of this program")


def trust_checkpoints(trusted: bool) -> None:
    """Whether this process reads pickles without the lists from now on, as ``--trust-checkpoint`` asks."""
    global _trusted
    _trusted = trusted


def load_metadata(file: IO[bytes]) -> Metadata:
    """The content of ``.metadata``, read with the list.

    Raises pickle.UnpicklingError, or what damaged bytes lead to.
    """
    metadata = pickle.load(file) if _trusted else _Allowed(file).load()
    if not isinstance(metadata, Metadata):
        raise pickle.UnpicklingError(f"found {type(metadata).__name__}, expected the metadata of a checkpoint")
    return metadata


def load_object(content: bytes) -> Any:
    """What ``torch.save`` wrote into ``content``, read with torch's and Megatron's list.

    Raises pickle.UnpicklingError, for pickles in its tensors too, or what damaged bytes lead to.
    """
    loaded = _load_saved(content)
    if not _trusted:
        check_bytes(loaded, _load_saved)
    return loaded


def _load_saved(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=not _trusted)


def read_metadata(folder: Path) -> Metadata:
    """The metadata of the checkpoint iteration in ``folder``.

    Raises:
        UserError: it is missing or damaged, or names a class that is not on the list.
    """
    path = folder / METADATA
    try:
        with path.open("rb") as file:
            return load_metadata(file)
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise _refused(path, "", error) from None


def read_common_state(folder: Path, metadata: Metadata) -> dict[str, Any]:
    """What the checkpoint iteration in ``folder`` holds in addition to sharded tensors and objects: its arguments.

    Raises:
        UserError: it has none, or they cannot be read or name a class that is not on the list.
    """
    if (folder / LEGACY_COMMON).is_file():
        return _read_object(folder / LEGACY_COMMON)
    for index, place in (metadata.storage_data or {}).items():
        if index.fqn == COMMON:
            return _read_object(shard_path(folder, place.relative_path), index.fqn, place.offset, place.length)[0]
    raise UserError(f"{folder} holds no training arguments; save it with Megatron's loop, or import it again")


def check_pickles(folder: Path) -> None:
    """Check that no pickle of the checkpoint iteration in ``folder`` names what is not on the lists. None is run.

    The objects are read whole; tensors are not.

    Raises:
        UserError: one does, or cannot be read; a shard lies outside the folder; or the iteration is in Megatron's
            legacy format, all of whose files are pickles.
    """
    if _trusted:
        return
    if not (folder / METADATA).is_file():
        legacy = next(iter(sorted(folder.glob("mp_rank_*/*.pt"))), None)
        if legacy is not None:
            raise UserError(
                f"{legacy}: Megatron's legacy format is a pickle throughout; convert the checkpoint where it was made "
                f"(--ckpt-convert-format torch_dist), or pass {FLAG} if you trust its maker"
            )
        return
    metadata = read_metadata(folder)
    for index, place in (metadata.storage_data or {}).items():
        path = shard_path(folder, place.relative_path)
        if isinstance(metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            _read_object(path, index.fqn, place.offset, place.length)
    if (folder / LEGACY_COMMON).is_file():
        _read_object(folder / LEGACY_COMMON)


def shard_path(folder: Path, name: str) -> Path:
    """The file of a shard. Raises UserError if its name leads out of ``folder``."""
    if not isinstance(name, str) or Path(name).name != name or name == "..":
        raise UserError(f"{folder / METADATA}: names the file {name!r}, which does not lie in the checkpoint's folder")
    return folder / name


def _read_object(path: Path, name: str = "", offset: int = 0, length: int = -1) -> Any:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return load_object(file.read(length))
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise _refused(path, name, error) from None


def _refused(path: Path, name: str, error: Exception) -> UserError:
    where = f"{path} ({name})" if name else str(path)
    named = _named(error)
    if named is None:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        return UserError(f"{where}: missing or damaged ({type(error).__name__}: {reason}); copy the checkpoint again")
    return UserError(
        f"{where}: names {named}, which no checkpoint of a run needs: reading it could run code. Take the checkpoint "
        f"from another source, or pass {FLAG} if you trust its maker"
    )


def _named(error: Exception) -> str | None:
    """The class that a list refused; None if the pickle failed for another reason."""
    found = _NAMED.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    return None if found is None else found.group(1)


class _GuardedPickle:
    """Stands for the module ``pickle`` in torch's reader of checkpoint folders."""

    load = staticmethod(load_metadata)

    def __getattr__(self, name: str) -> Any:
        return getattr(pickle, name)


def guard_torch() -> None:
    """From now on torch's loader of checkpoints reads pickles with the lists, whoever calls it.

    The check before a run is done by one rank, of files that may be exchanged until they are read; this is where each
    rank reads them. Calling it again does nothing.
    """
    if isinstance(filesystem.pickle, _GuardedPickle):
        return
    filesystem.pickle = _GuardedPickle()  # type: ignore[assignment]
    load_bytes = DefaultLoadPlanner.load_bytes

    @functools.wraps(load_bytes)
    def call(self: DefaultLoadPlanner, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        try:
            load_object(value.getvalue())
        except pickle.UnpicklingError as error:
            raise _refused(Path(name), "", error) from None
        value.seek(0)
        load_bytes(self, read_item, value)

    DefaultLoadPlanner.load_bytes = call  # type: ignore[method-assign]
