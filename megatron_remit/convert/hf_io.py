"""Hugging Face folders: safetensors are read and written one tensor at a time, and everything else is copied."""

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
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

# What a model folder may need in addition to the weights: configs, tokenizer, chat template.
_SIDE_PATTERNS = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken")
_SIDE_FOLDERS = ("additional_chat_templates",)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        UserError: the file is missing, is not valid JSON, or holds something other than an object.
    """
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
    """Write ``content`` as indented JSON."""
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
    """The tensors of a folder's safetensors files: all names, shapes and dtypes, and the values one tensor at a time.

    One file is open at a time. Tensors are read, not mapped: a mapped file would count as memory of this process for as
    long as it is open.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[str, tuple[Path, tuple[int, ...], str]] = {}
        self._open: tuple[Path | None, Any] = (None, None)
        if (folder / INDEX).is_file():
            weight_map = read_json(folder / INDEX).get("weight_map", {})
            for path in sorted({folder / file for file in weight_map.values()}):
                self._add(path)
            for name, file in weight_map.items():
                if name not in self._found or self._found[name][0] != folder / file:
                    raise UserError(f"{folder / file}: tensor {name} is missing, though {INDEX} promises it")
        elif (folder / SINGLE).is_file():
            self._add(folder / SINGLE)
        else:
            raise UserError(f"{folder}: neither {SINGLE} nor {INDEX} is there; save the weights as safetensors first")
        # Older Llama files hold RoPE's frequencies, which Megatron computes from the config.
        self._found = {name: found for name, found in self._found.items() if not name.endswith("rotary_emb.inv_freq")}

    def _add(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such file, though {INDEX} names it")
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():
                    part = file.get_slice(name)
                    self._found[name] = (path, tuple(part.get_shape()), part.get_dtype())
        except SafetensorError as error:
            raise UserError(f"{path}: damaged or truncated safetensors file ({error}); copy it again") from None

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> torch.dtype:
        """Check that the folder holds exactly the ``expected`` tensors (name -> shape), and return their one dtype.

        Raises:
            UserError: a tensor is missing, has another shape or is not expected; or there are several dtypes, or one
                that Megatron does not train in. The message names the first such tensor.
        """
        for name, shape in expected.items():
            if name not in self._found:
                raise UserError(f"{self._folder}: tensor {name} {list(shape)} is missing")
            path, found, _ = self._found[name]
            if found != shape:
                raise UserError(f"{path}: tensor {name} has shape {list(found)}, expected {list(shape)}")
        for name, (path, *_) in self._found.items():
            if name not in expected:
                raise UserError(f"{path}: unexpected tensor {name}; config.json has no place for it")
        dtypes = {dtype for *_, dtype in self._found.values()}
        if len(dtypes) > 1:
            raise UserError(f"{self._folder}: several dtypes {sorted(dtypes)}; save the model in one of them")
        dtype = dtypes.pop()
        if dtype not in _DTYPES:
            raise UserError(f"{self._folder}: tensors of dtype {dtype}; save the model in one of {sorted(_DTYPES)}")
        return _DTYPES[dtype]

    def get(self, name: str) -> torch.Tensor:
        """The tensor ``name``, in the dtype in which it is stored."""
        path = self._found[name][0]
        if self._open[0] != path:
            self._open = (path, safe_open(str(path), framework="pt", backend="pread"))
        return self._open[1].get_tensor(name)


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
