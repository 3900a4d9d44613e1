"""Hugging Face folders: read and write safetensors one tensor at a time, copy everything else."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from megatron_remit.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DEFAULT_SHARD_BYTES = 5_000_000_000

# Everything beside the weights that a model folder may need: configs, tokenizer, chat template.
_SIDE_PATTERNS = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken")
_SIDE_FOLDERS = ("additional_chat_templates",)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from ``path``; :class:`UserError` if the file is missing or is something else."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a Hugging Face model folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """``content`` as readable JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def copy_side_files(source: Path, target: Path) -> None:
    """Copy config, tokenizer and chat template files (all but the weights and their index)."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in _SIDE_PATTERNS:
        for file in source.glob(pattern):
            if file.is_file() and not file.name.endswith(".index.json"):
                shutil.copyfile(file, target / file.name)
    for folder in _SIDE_FOLDERS:
        if (source / folder).is_dir():
            shutil.copytree(source / folder, target / folder)


class HfTensors:
    """The tensors of a folder's safetensors files: names, shapes, and one tensor at a time (mapped, not copied)."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        if (folder / INDEX).is_file():
            weight_map = read_json(folder / INDEX).get("weight_map", {})
            for path in sorted({folder / file for file in weight_map.values()}):
                self._add(path)
            for name, file in weight_map.items():
                if self._files.get(name) != folder / file:
                    raise UserError(f"{folder / file}: tensor {name} is missing, though {INDEX} promises it")
        elif (folder / SINGLE).is_file():
            self._add(folder / SINGLE)
        else:
            raise UserError(f"{folder}: neither {SINGLE} nor {INDEX} is there; save the weights as safetensors first")

    def _add(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such file, though {INDEX} names it")
        try:
            self._open[path] = safe_open(str(path), framework="pt")
        except SafetensorError as error:
            raise UserError(f"{path}: damaged or truncated safetensors file ({error}); copy it again") from None
        self._files.update(dict.fromkeys(self._open[path].keys(), path))

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise :class:`UserError` naming the first tensor that is missing, has another shape, or is not expected."""
        for name, shape in expected.items():
            if name not in self._files:
                raise UserError(f"{next(iter(self._open)).parent}: tensor {name} {list(shape)} is missing")
            found = tuple(self._open[self._files[name]].get_slice(name).get_shape())
            if found != shape:
                raise UserError(f"{self._files[name]}: tensor {name} has shape {list(found)}, expected {list(shape)}")
        for name in self._files:
            if name not in expected:
                raise UserError(f"{self._files[name]}: unexpected tensor {name}; config.json has no place for it")

    def get(self, name: str) -> torch.Tensor:
        """One tensor, of the dtype it is stored in."""
        return self._open[self._files[name]].get_tensor(name)


def write_tensors(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int = DEFAULT_SHARD_BYTES
) -> None:
    """Write tensors as they come into files of at most ``shard_bytes`` (a larger tensor has a file of its own).

    One file is model.safetensors; several are model-00001-of-0000N.safetensors with an index, as HF names them.
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
