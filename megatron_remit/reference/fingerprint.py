"""Which reference it is: a number that follows from the content of its checkpoint."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_remit.convert.megatron_io import check_shards
from megatron_remit.model_arguments import MODEL_ARGUMENTS, NEUTRAL, has_effect, not_neutral

_BLOCK = 1 << 20
_BLOCKS = 256

# The arguments of the legacy fingerprint, frozen: stores on disk carry numbers that were made with this list.
# `norm_epsilon` is a name that Megatron does not have, so its value was always None.
_LEGACY = (
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
# The values that a legacy fingerprint stands for, of arguments that it does not cover, where these are not the neutral
# ones: every import stores RoPE. Learned positions are tensors, which the legacy fingerprint covers.
_LEGACY_VALUES: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("rope", "learned_absolute"),
    "rope_type": ("rope",),
}


def reference_fingerprint(folder: Path, arguments: argparse.Namespace) -> str:
    """SHA-256, 64 hexadecimal digits, of the torch_dist checkpoint iteration in ``folder``.

    Covers: name, shape and dtype of every tensor; name and size of every shard file; the bytes of the shard files, all
    of them up to 256 MiB, else 256 blocks of 1 MiB at even distances; and of ``arguments`` (the checkpoint's own) those
    that change what the tensors compute, as :mod:`megatron_remit.model_arguments` lists them, where they are not
    neutral. Two models of one training differ nearly everywhere, so the blocks distinguish them; a change of single
    weights in a model above 256 MiB may not show. The same weights saved in another layout count as another reference.

    Raises:
        UserError: the checkpoint is not whole.
    """
    return _digest(folder, {name: str(value) for name, value in not_neutral(arguments).items()})


def legacy_fingerprint(folder: Path, arguments: argparse.Namespace) -> str:
    """The fingerprint of the same checkpoint that stores were written with before the table of model arguments.

    It covers a fixed list of arguments, so two references that differ in another one have the same:
    :func:`unseen_by_legacy` says whether that can be the case. Raises UserError as :func:`reference_fingerprint` does.
    """
    return _digest(folder, {name: str(getattr(arguments, name, None)) for name in _LEGACY})


def unseen_by_legacy(arguments: argparse.Namespace) -> dict[str, Any]:
    """Which of ``arguments`` make this reference another one than its legacy fingerprint says, by name.

    Empty if every argument that the legacy fingerprint does not cover has the value that it stands for.
    """
    stated, unseen = vars(arguments), {}
    for row in MODEL_ARGUMENTS:
        if row.fingerprint and row.name not in _LEGACY and has_effect(row, stated):
            value = stated.get(row.name)
            if value not in _LEGACY_VALUES.get(row.name, (None, NEUTRAL[row.name])):
                unseen[row.name] = value
    return unseen


def _digest(folder: Path, shape: dict[str, str]) -> str:
    hashed = hashlib.sha256()
    metadata = check_shards(folder)
    tensors = sorted(
        (name, list(entry.size), str(entry.properties.dtype))
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    )
    shards = sorted(folder.glob("*.distcp"))
    sizes = [(shard.name, shard.stat().st_size) for shard in shards]
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
