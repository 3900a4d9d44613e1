"""The files of a model folder that travel with the model: config, tokenizer, chat template, generation config.

Everything else stays behind: a trainer's state, adapters, other weights. So does Python code: the architectures that
are read here are transformers' own, and `auto_map`, which names the code, would make a reader that trusts remote code
look for it.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_remit.convert.hf_io import read_json, write_json
from megatron_remit.errors import UserError, note

CONFIG, GENERATION = "config.json", "generation_config.json"
_PATTERNS = (
    CONFIG,
    GENERATION,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
_NEVER = (".py", ".index.json", ".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")  # code, weights, pickles
_FOLDERS = ("additional_chat_templates",)
_WITH_CODE = (CONFIG, "tokenizer_config.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def side_files(folder: Path) -> list[Path]:
    """The files that travel, as paths relative to ``folder``.

    Raises:
        UserError: one of them is a symbolic link that leads out of the folder. The links of the Hugging Face cache,
            from `snapshots/REVISION` to its own `blobs`, are files of the folder. Or a config is not a JSON object.
    """
    found = {path for pattern in _PATTERNS for path in folder.glob(pattern) if path.is_file() or path.is_symlink()}
    for name in _FOLDERS:
        found.update(path for path in (folder / name).rglob("*") if path.is_file() or path.is_symlink())
    files = sorted(path for path in found if not path.name.endswith(_NEVER))
    homes = _homes(folder)
    for path in files:
        target = Path(os.path.realpath(path))
        if not any(target.is_relative_to(home) for home in homes):
            raise UserError(
                f"{path} leads out of the folder, to {target}; put a copy of the file in the place of the link"
            )
    found_files = [path.relative_to(folder) for path in files if path.is_file()]
    for name in _WITH_CODE:
        if Path(name) in found_files:
            read_json(folder / name)
    return found_files


def _homes(folder: Path) -> list[Path]:
    """The folder, and the Hugging Face cache's folder of files if this is one of its snapshots.

    A `blobs` that is a link may lead anywhere, and no cache has one.
    """
    whole = folder.resolve()
    caches = [level.parent.parent for level in (whole, *whole.parents) if level.parent.name == "snapshots"]
    return [whole, *(cache / "blobs" for cache in caches if not (cache / "blobs").is_symlink())]


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a tokenizer that transformers reads without code from the folder."""
    return any((folder / name).is_file() for name in _TOKENIZERS)


def copy_side_files(source: Path, files: list[Path], target: Path, config: Mapping[str, Any]) -> None:
    """Copy ``files`` of ``source`` to ``target``; config.json gets the fields of ``config`` in addition.

    ``auto_map`` is dropped, and so is a generation config that is no JSON object, as transformers ignores it.
    """
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        name = file.as_posix()
        if name == GENERATION and not _is_object(source / file):
            continue
        if name not in _WITH_CODE:
            shutil.copyfile(source / file, target / file)
            continue
        content = read_json(source / file)
        changed = {field: value for field, value in content.items() if field != "auto_map"}
        changed |= config if name == CONFIG else {}
        if "auto_map" in content:
            note(f"{source / file}: auto_map is left out, and so is the Python code that it names; neither is run")
        if changed == content:
            shutil.copyfile(source / file, target / file)
        else:
            write_json(target / file, changed)


def _is_object(path: Path) -> bool:
    try:
        read_json(path)
    except UserError as error:
        note(f"{error}; it is left out, and generation uses the defaults")
        return False
    return True
