"""Results on disk: ``OUT/MODEL/SUITE/COLUMN.json``, each whole or not there, with the settings that it holds for.

A column that is there is not run again, so an evaluation goes on where it was stopped, and several jobs can share one
OUT, each with columns of its own.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_remit.artifacts import new_file, unwritable
from megatron_remit.errors import UserError

SETTINGS = "settings"


@dataclass(frozen=True)
class Results:
    """The results of one model under ``out``. ``settings`` is all that a score depends on beside the column."""

    out: Path
    model: str
    suite: str
    settings: dict[str, Any]

    def path(self, column: str) -> Path:
        return self.out / self.model / self.suite / f"{column}.json"

    def read(self, column: str) -> dict[str, Any] | None:
        """What is there of ``column``.

        Raises UserError if it holds for other settings or cannot be read.
        """
        path = self.path(column)
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content[SETTINGS]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: not a result of this program ({error}); move it away") from None
        for name, value in self.settings.items():
            if found.get(name) != value:
                raise UserError(
                    f"{path}: there with {name} {found.get(name)}, this run has {value}; give another --out or "
                    "--overwrite"
                )
        return content

    def write(self, column: str, result: dict[str, Any]) -> None:
        """Write the result of ``column``. Raises UserError if that is not possible."""
        write_json(self.path(column), result | {SETTINGS: self.settings})


def write_json(path: Path, content: object) -> None:
    """Whole or not at all, by any number of processes at once. Raises UserError."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """The same for a text."""
    with unwritable(f"--out: cannot write {path}", "name a folder that can be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as file:
            file.write(text.encode())


def fingerprint(folder: Path) -> str:
    """A name for what is in a model folder: its config and tokenizer by content, its weights by size and by their first
    and last 64 KiB. A copy of the folder has the same."""
    hashed = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".jinja")):
        size = path.stat().st_size
        hashed.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            hashed.update(file.read() if path.suffix != ".safetensors" else file.read(65536))
            if path.suffix == ".safetensors" and size > 65536:
                file.seek(-65536, os.SEEK_END)
                hashed.update(file.read())
    return hashed.hexdigest()[:16]
