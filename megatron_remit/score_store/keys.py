"""The key of a row: what the reference reads, and nothing that depends on where or when it is read."""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:  # a writer without a model need not wait for torch
    from torch import Tensor

Key = tuple[int, int]
"""A 128-bit hash as two unsigned 64-bit numbers, the high one first."""

KEY_BYTES = 16


def row_key(sample: dict[str, Any], reset_position_ids: bool, reset_attention_mask: bool) -> Key:
    """BLAKE2b-128 of a sample of Megatron's GPT dataset (``tokens``, ``labels`` [s] int64 and the masks).

    Hashed are the s + 1 tokens: the s that are read and the label of the last, as 32-bit integers. With document masks
    the borders come on top: GPTDataset puts token 0 in the place of padding after it has drawn the borders, so the
    tokens alone do not tell them. The loss mask changes no NLL and is left out.
    """
    row = numpy.append(sample["tokens"].numpy(), sample["labels"][-1].item()).astype("<u4")
    hashed = hashlib.blake2b(row.tobytes(), digest_size=KEY_BYTES)
    if reset_position_ids:
        hashed.update(b"positions" + sample["position_ids"].numpy().astype("<u4").tobytes())
    if reset_attention_mask:
        hashed.update(b"borders" + numpy.packbits(_borders(sample["attention_mask"])).tobytes())
    digest = hashed.digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def key_bytes(key: Key) -> bytes:
    """The 16 bytes of the hash."""
    return key[0].to_bytes(8, "little") + key[1].to_bytes(8, "little")


def _borders(attention_mask_1SS: "Tensor") -> numpy.ndarray:
    """True where a position does not see the one before it (Megatron's masks are True where attention is cut)."""
    return attention_mask_1SS[0].diagonal(-1).numpy()
