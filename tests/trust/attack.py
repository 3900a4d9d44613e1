"""Checkpoints with a pickle that makes a file where it is read."""

import io
import os
import pickle
import shutil

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo


class MakesFile:
    """Unpickled, it makes the file ``path``."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class MakesFileByName(MakesFile):
    """The same through a function that looks harmless."""

    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({str(self.path)!r})",)


def tensor(harmful, dtype=torch.uint8):
    """Its pickle as Transformer Engine keeps a layer's state, which it unpickles."""
    pickled = pickle.dumps(harmful)
    return torch.frombuffer(bytearray(pickled.ljust(-(-len(pickled) // 8) * 8)), dtype=dtype)


def poison_metadata(folder, harmful):
    """``.metadata`` with ``harmful`` in its planner's data, which nothing looks at."""
    metadata = FileSystemReader(str(folder)).read_metadata()
    metadata.planner_data = harmful
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def poison_object(folder, name, harmful):
    """The stored object ``name`` with ``harmful`` beside its content, in a shard file of its own."""
    metadata = FileSystemReader(str(folder)).read_metadata()
    (index, place), *_ = [entry for entry in metadata.storage_data.items() if entry[0].fqn.startswith(name)]
    with open(folder / place.relative_path, "rb") as file:
        file.seek(place.offset)
        content = torch.load(io.BytesIO(file.read(place.length)), weights_only=False)
    poisoned = io.BytesIO()
    torch.save([*content, harmful], poisoned)
    (folder / "__9_9.distcp").write_bytes(poisoned.getvalue())
    metadata.storage_data[index] = _StorageInfo("__9_9.distcp", 0, len(poisoned.getvalue()))
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def poison_legacy(folder, harmful):
    """Megatron's legacy format in the place of torch_dist."""
    shutil.rmtree(folder)
    (folder / "mp_rank_00").mkdir(parents=True)
    torch.save({"model": {}, "harmful": harmful}, folder / "mp_rank_00" / "model_optim_rng.pt")


def poison_common(folder, harmful):
    """The file in which earlier versions of Megatron kept the arguments."""
    torch.save({"args": harmful}, folder / "common.pt")
