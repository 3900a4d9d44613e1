"""Megatron's files of a corpus' rows (their order, where each begins), and what a killed run left half written there.

Megatron writes them in place, and takes them for whole once they are there: half of one would end every later run over
the same rows. None is ever read as a pickle here.
"""

import argparse
import re
import time
from collections.abc import Iterable
from pathlib import Path

import numpy

from megatron_remit.errors import note

# {hash}-{class}-{split}-{part}.npy, of GPTDataset and BlendedDataset.
_NAME = re.compile(r"[0-9a-f]{32}-\w+-(train|valid|test)-\w+_index\.npy")

_STILL = 10.0
"""Seconds without a change after which nobody writes a file any more."""


def row_caches(args: argparse.Namespace, prefixes: Iterable[str]) -> list[Path]:
    """The folders in which Megatron keeps such files: that of ``--data-cache-path``, else one below each corpus."""
    if args.data_cache_path is not None:
        return [Path(args.data_cache_path)]
    return [folder for prefix in dict.fromkeys(prefixes) for folder in sorted(Path(prefix, "cache").glob("*_indices"))]


def remove_damaged(folders: Iterable[Path]) -> None:
    """Remove the files that are not whole, with a note each, so that Megatron makes them anew. For one process, before
    any reads them. A file that another run is writing becomes whole, or has not changed for some seconds."""
    for folder in folders:
        for path in sorted(folder.glob("*_index.npy")):
            if not _NAME.fullmatch(path.name):
                continue
            while (damage := _damage(path)) and time.time() - _changed(path) < _STILL:
                time.sleep(0.5)
            if damage:
                note(f"{path}: half written or damaged ({damage}); it is made anew")
                path.unlink(missing_ok=True)


def _damage(path: Path) -> str | None:
    """What is wrong with an array file; None for a whole one, and for one that is gone."""
    try:
        numpy.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        return None
    except (ValueError, EOFError, OSError) as error:
        return str(error)
    return None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
