"""Which reference it is: a number that follows from the content of its checkpoint."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_remit.convert.megatron_io import check_shards

_BLOCK = 1 << 20
_BLOCKS = 256

# Arguments that change what the same tensors compute.
_SHAPE = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "norm_epsilon",
    "layernorm_epsilon",
    "normalization",
    "rotary_base",
    "rotary_percent",
    "rotary_interleaved",
    "no_rope_freq",
    "qk_layernorm",
    "swiglu",
    "untie_embeddings_and_output_weights",
    "spec",
    "remit_vocab_size",
    "use_rope_scaling",
    "rope_scaling_factor",
    "multi_latent_attention",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_head_dim",
    "qk_pos_emb_head_dim",
    "v_head_dim",
)


def reference_fingerprint(folder: Path, arguments: Any) -> str:
    """SHA-256, 64 hexadecimal digits, of the torch_dist checkpoint iteration in ``folder``.

    Covers: name, shape and dtype of every tensor; name and size of every shard file; the bytes of the shard files, all
    of them up to 256 MiB, else 256 blocks of 1 MiB at even distances; and of ``arguments`` (the checkpoint's own) those
    that change what the tensors compute. Two models of one training differ nearly everywhere, so the blocks tell them
    apart; a change of single weights in a model above 256 MiB may not show. The same weights saved in another layout
    count as another reference.

    Raises:
        UserError: the checkpoint is not whole.
    """
    hashed = hashlib.sha256()
    metadata = check_shards(folder)
    tensors = sorted(
        (name, list(entry.size), str(entry.properties.dtype))
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    )
    shards = sorted(folder.glob("*.distcp"))
    sizes = [(shard.name, shard.stat().st_size) for shard in shards]
    shape = {name: str(getattr(arguments, name, None)) for name in _SHAPE}
    hashed.update(json.dumps([tensors, sizes, shape]).encode())
    for shard, offset, length in _sampled(shards, [size for _, size in sizes]):
        with shard.open("rb") as file:
            file.seek(offset)
            hashed.update(file.read(length))
    return hashed.hexdigest()


def _sampled(shards: list[Path], sizes: list[int]) -> list[tuple[Path, int, int]]:
    """(file, offset, bytes) of the blocks to read, at even distances over all files together."""
    total = sum(sizes)
    if total <= _BLOCK * _BLOCKS:
        return [(shard, 0, size) for shard, size in zip(shards, sizes, strict=True)]
    step = total // _BLOCKS
    blocks, start = [], 0
    for shard, size in zip(shards, sizes, strict=True):
        first = -start % step  # where the next multiple of `step` lies in this file
        blocks += [(shard, offset, min(_BLOCK, size - offset)) for offset in range(first, size, step)]
        start += size
    return blocks
