"""What a variant of a model folder is, and the edits that make one of a plain folder."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

VOCABULARY = 260
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# The smallest models that have everything: one layer, hidden 32, a tokenizer.
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "smollm3": ("smollm3", {}),
}
SMALL = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
}


@dataclass(frozen=True)
class Read:
    """A folder that is imported, by a change to a plain one; what it must give back."""

    change: Callable[[Path], object]
    base: str = "untied"
    flag: str | None = None  # --dtype
    note: str | None = None  # words of a note on stderr
    as_plain: bool = False  # the plain folder's tensors: transformers itself would read random ones
    dtype: torch.dtype | str = "auto"  # in which transformers reads the folder for the comparison


@dataclass(frozen=True)
class Refused:
    """A folder that is refused: its change, and the words that the message must have (a regular expression)."""

    change: Callable[[Path], object]
    words: str
    base: str = "untied"
    flag: str | None = None


def edit_json(name: str, **changes: Any) -> Callable[[Path], None]:
    """Set fields of a JSON file; ``...`` removes one."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | changes
        kept = {field: value for field, value in content.items() if value is not ...}
        (folder / name).write_text(json.dumps(kept))

    return change


def config(**changes: Any) -> Callable[[Path], None]:
    return edit_json("config.json", **changes)


def tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Edit the tensors of model.safetensors; what ``edit`` returns, if anything, takes their place."""

    def change(folder: Path) -> None:
        found = load_file(folder / SINGLE)
        changed = edit(found) or found
        save_file({name: value.clone() for name, value in changed.items()}, folder / SINGLE, metadata={"format": "pt"})

    return change


def renamed(rename: Callable[[str], str]) -> Callable[[Path], None]:
    return tensors(lambda found: {rename(name): value for name, value in found.items()})


def added(files: dict[str, str]) -> Callable[[Path], None]:
    """Write files: name -> text."""

    def change(folder: Path) -> None:
        for name, content in files.items():
            write(folder / name, content)

    return change


def write(path: Path, content: str | bytes = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def both(*changes: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def sharded(folder: Path) -> dict[str, str]:
    """Cut model.safetensors into two files and an index, as save_pretrained does; the index' weight_map."""
    found = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = sorted(found)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: found[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def as_dtype(dtype: torch.dtype, only: str = "") -> Callable[[Path], None]:
    """Convert the tensors with ``only`` in their names, but not the config."""
    return tensors(lambda found: {name: value.to(dtype) if only in name else value for name, value in found.items()})
