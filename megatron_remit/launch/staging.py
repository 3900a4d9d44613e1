"""What each node copies to its own disk before it trains, and the flags of the training program that then name the
copies (``STAGE`` and ``STAGE_WHAT``).

A copy's name follows the path, and sizes and times of the files: it serves the next start of the job and other jobs,
and what was replaced in place is copied anew. ``launch/stage.py`` makes the copies. Runs on the host with the standard
library alone (see ``megatron_remit.launch.job``).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_remit.launch.values import is_weight

CORPUS, INDEX, FOLDER = "corpus", "index", "folder"
"""Kinds of copies: a corpus' three files, its ``.idx`` alone with links to the other two, a folder with all in it."""
_FOLDERS = {
    "reference": ("--reference-load", "--reference-base-load"),
    "store": ("--score-store", "--score-store-base"),
}
_CORPORA = ("--data-path", "--train-data-path", "--valid-data-path", "--test-data-path")


@dataclass(frozen=True)
class Copy:
    """``source``, a folder or a corpus' prefix, and where its copy is on each node."""

    kind: str
    source: str
    target: str


def copies(flags: Sequence[str], stage: Path, what: Sequence[str]) -> list[Copy]:
    """What of the files that the training program's ``flags`` name belongs under ``stage`` on each node."""
    folders = {flag for name in what for flag in _FOLDERS.get(name, ())}
    found: dict[str, Copy] = {}
    for _, flag, path in _placed(flags):
        if flag in _CORPORA and {INDEX, CORPUS} & {*what}:
            kind = CORPUS if CORPUS in what else INDEX
        elif flag in folders:
            kind = FOLDER
        else:
            continue
        found[path] = Copy(kind, path, f"{stage}/{Path(path).name}-{_key(kind, path)}")
    return list(found.values())


def with_copies(flags: Sequence[str], made: Sequence[Copy], cache: Path) -> list[str]:
    """``flags`` with the copies in place of what they were made of.

    Rank 0 alone writes the order of a corpus' rows, by default next to the corpus; for the ranks of other nodes it goes
    to the folder ``cache``, which all nodes share, unless the flags name one.
    """
    targets = {copy.source: copy.target for copy in made}
    places = {index for index, _, path in _placed(flags) if path in targets}
    new = [targets[word] if index in places else word for index, word in enumerate(flags)]
    if "--data-cache-path" not in flags and any(copy.kind != FOLDER for copy in made):
        new += ["--data-cache-path", str(cache)]
    return new


def _placed(flags: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Place, flag and value of all values that are no weight of a blend."""
    flag = ""
    for index, word in enumerate(flags):
        if word.startswith("--"):
            flag = word
        elif not (flag in _CORPORA and is_weight(word)):
            yield index, flag, word


def _key(kind: str, path: str) -> str:
    """12 hexadecimal digits that follow path, kind, and names, sizes and times of the files."""
    if kind == FOLDER:
        files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    else:
        files = [f"{path}{suffix}" for suffix in (".bin", ".idx", ".json")]
    hashed = hashlib.sha256(f"{kind} {path}".encode())
    for file in sorted(filter(os.path.exists, files)):
        status = os.stat(file)
        hashed.update(f"\n{file} {status.st_size} {status.st_mtime_ns // 10**9}".encode())
    return hashed.hexdigest()[:12]
