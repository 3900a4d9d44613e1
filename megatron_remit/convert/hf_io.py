"""Files of a Hugging Face folder: JSON, and safetensors that are written one tensor at a time."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_remit.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DEFAULT_SHARD_BYTES = 1_000_000_000


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        UserError: the file is missing, is not valid JSON, or holds something other than an object.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a Hugging Face model folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bad syntax, bad UTF-8, an integer of thousands of digits
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_shard_bytes(shard_bytes: int) -> None:
    """Raise :class:`UserError` for a size that no file can have."""
    if shard_bytes <= 0:
        raise UserError(f"--shard-bytes {shard_bytes}: give a number of bytes above 0 (default {DEFAULT_SHARD_BYTES})")


def write_tensors(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int = DEFAULT_SHARD_BYTES
) -> None:
    """Write ``tensors`` in their order into files of at most ``shard_bytes`` each; a larger tensor has its own file.

    A single file is named model.safetensors. Several are named model-00001-of-0000N.safetensors and have an index, as
    Hugging Face writes them.
    """
    parts: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    pending_bytes = total_bytes = 0

    def flush() -> None:
        nonlocal pending_bytes
        save_file(pending, str(folder / f"part-{len(parts)}"), metadata={"format": "pt"})
        parts.append(list(pending))
        pending.clear()
        pending_bytes = 0

    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if pending and pending_bytes + size > shard_bytes:
            flush()
        pending[name] = tensor.contiguous()
        pending_bytes += size
        total_bytes += size
    flush()
    if len(parts) == 1:
        os.rename(folder / "part-0", folder / SINGLE)
        return
    weight_map = {}
    for number, names in enumerate(parts):
        file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        os.rename(folder / f"part-{number}", folder / file)
        weight_map.update(dict.fromkeys(names, file))
    write_json(folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
