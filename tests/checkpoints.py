"""Read a torch_dist checkpoint whole, in one process, without Megatron's model code."""

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata


def load_tensors(folder):
    """All model tensors of the checkpoint iteration in ``folder`` by their name, in full shape."""
    reader = FileSystemReader(str(folder))
    metadata = reader.read_metadata()
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and not name.startswith(("optimizer", "chained"))
    }
    torch.distributed.checkpoint.load(tensors, storage_reader=reader, no_dist=True)
    return tensors
