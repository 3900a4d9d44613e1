"""How an input is made bad: the verbs of ``make`` in tests/campaign/inputs/*.toml, each on a path of the world."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

DEPTH = 100_000
"""Brackets inside each other: more than Python's parser of JSON follows."""


def spoil(folder: Path, steps: list[list[object]]) -> None:
    """Do each of ``steps``, [verb, path, *arguments], in ``folder``."""
    for verb, path, *arguments in steps:
        VERBS[str(verb)](folder / str(path), *arguments)


def flip_bit(path: Path, share: float) -> None:
    """Turn one bit of the byte at this share (0 to 1) of the file."""
    with path.open("r+b") as file:
        at = min(int(path.stat().st_size * share), path.stat().st_size - 1)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def cut(path: Path, share: float) -> None:
    """Keep the first share (0 to 1) of the file."""
    os.truncate(path, int(path.stat().st_size * share))


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _bytes(path: Path, numbers: list[int]) -> None:
    path.write_bytes(bytes(numbers))


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _becomes_folder(path: Path) -> None:
    if path.exists():
        _remove(path)
    path.mkdir(parents=True)


def _becomes_file(path: Path) -> None:
    if path.exists():
        _remove(path)
    path.write_text("a file\n")


def _link(path: Path, target: str) -> None:
    if path.exists():
        _remove(path)
    path.symlink_to(target)


def _edit(path: Path, changes: dict[str, object]) -> None:
    """Change keys of a JSON object; "REMOVE" takes a key out."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if value == "REMOVE":
            content.pop(key, None)
        else:
            content[key] = value
    path.write_text(json.dumps(content))


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new))


def _copy(path: Path, source: str) -> None:
    """``source`` is relative to the folder of ``path``."""
    origin = path.parent / source
    if path.exists():
        _remove(path)
    shutil.copytree(origin, path) if origin.is_dir() else shutil.copy(origin, path)


def _deep(path: Path, key: str = "") -> None:
    nested = "[" * DEPTH + "]" * DEPTH
    path.write_text(f'{{"{key}": {nested}}}\n' if key else nested + "\n")


def _tensor(path: Path, name: str, what: str) -> None:
    """Change one tensor of a safetensors file: "nan", "remove", "transpose", "int", "cut"."""
    tensors = load_file(path)
    if what == "remove":
        del tensors[name]
    elif what == "nan":
        tensors[name].view(-1)[3] = float("nan")
    elif what == "int":
        tensors[name] = tensors[name].int()
    elif what == "cut":
        tensors[name] = tensors[name][:-1].contiguous()
    else:
        tensors[name] = tensors[name].T.contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


VERBS: dict[str, Callable[..., None]] = {
    "text": _text,
    "bytes": _bytes,
    "append": lambda path, text: path.write_text(path.read_text() + text),
    "remove": _remove,
    "cut": cut,
    "flip": flip_bit,
    "folder": _becomes_folder,
    "file": _becomes_file,
    "link": _link,
    "edit": _edit,
    "replace": _replace,
    "copy": _copy,
    "deep": _deep,
    "digits": lambda path, count: path.write_text('{"text": ' + "9" * count + "}\n"),
    "tensor": _tensor,
    "pipe": lambda path: os.mkfifo(path),
}
