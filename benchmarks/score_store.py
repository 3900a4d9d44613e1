"""How fast a score store opens and reads, how much memory it takes, and what a node in training needs of it.

    python benchmarks/score_store.py --csv benchmarks/results/score_store_cpu.csv

There are two synthetic stores. One, for opening and memory, has as many rows as 50B tokens at 4096 make (12.2M); they
are short to save disk, but keys and index are those of a real store. The other, for reading, has rows of real width.
One process reads rows in random order, in turn with the page cache dropped (cold) and not (warm). An 8-GPU node that
trains OLMo-2-1B (8.5 GFLOP per token: 6 x 1.28B parameters that multiply, and attention at 4096) at the peak of its
GPUs (8 x 989 TFLOP/s, dense bf16, NVIDIA's data sheet of the H100) would read 227 rows per second.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
from common import conditions, percentiles, write_csv

from megatron_remit.score_store.index import INDEX
from megatron_remit.score_store.manifest import Identity, Manifest, create_manifest
from megatron_remit.score_store.reader import ScoreStore
from megatron_remit.score_store.shard import write_shard

SHARD_ROWS = 8192
NEEDED_ROWS_PER_SECOND = 8 * 989e12 / 8.5e9 / 4096


def main() -> None:
    """Make both stores, measure, print and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index-rows", type=int, default=12_207_031, help="rows of the store for opening")
    parser.add_argument("--read-rows", type=int, default=32_768, help="rows of the store for reading")
    parser.add_argument("--length", type=int, default=4096, help="tokens per row that is read")
    parser.add_argument("--repeats", type=int, default=9, help="openings, and readings of a sample of rows")
    parser.add_argument("--folder", type=Path, help="where to make the stores (default: a temporary folder)")
    parser.add_argument("--csv", type=Path, help="write the result to this file")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(open_once(options.open)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = [opening(options, Path(folder) / "index"), reading(options, Path(folder) / "rows")]
    keys = list(dict.fromkeys(name for row in rows for name in row))
    rows = [{name: row.get(name, "") for name in keys} for row in rows]
    for row in rows:
        print("\n".join(f"{name:>32}: {value}" for name, value in row.items() if value != ""), end="\n\n")
    if options.csv:
        write_csv(options.csv, rows)


def make_store(folder: Path, rows: int, length: int) -> None:
    """A store of random keys and NLLs."""
    draw = numpy.random.default_rng(0)
    identity = Identity("0" * 64, None, 4096, length, False, False, "bfloat16", "float16")
    create_manifest(folder, Manifest(identity, {}))
    for start in range(0, rows, SHARD_ROWS):
        count = min(SHARD_ROWS, rows - start)
        table = draw.integers(0, 1 << 64, (count, 2), dtype=numpy.uint64)
        nll = draw.exponential(2.0, (count, length)).astype(numpy.float16)
        write_shard(folder, identity, list(map(tuple, table.tolist())), nll, {})


def opening(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Seconds and memory to open the store, first without an index file (opening it writes one), then with one."""
    make_store(folder, options.index_rows, 8)
    first = in_new_process(folder)
    again = [in_new_process(folder) for _ in range(options.repeats)]
    return {
        **conditions("numpy"),
        "what": "open",
        "rows": options.index_rows,
        "shards": -(-options.index_rows // SHARD_ROWS),
        "index_bytes_per_row": round((folder / INDEX).stat().st_size / options.index_rows, 2),
        "index_MB": round((folder / INDEX).stat().st_size / 1e6, 1),
        "first_open_s": round(first["seconds"], 2),
        "first_open_peak_MB": round(first["peak"] / 1e6, 1),
        **percentiles("open_s", [run["seconds"] for run in again]),
        **percentiles("private_MB", [run["private"] / 1e6 for run in again], 1),
        **percentiles("lookup_us", [run["lookup"] * 1e6 for run in again], 1),
    }


def in_new_process(folder: Path) -> dict[str, float]:
    """:func:`open_once` in a process that has opened nothing yet."""
    command = [sys.executable, __file__, "--open", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def open_once(folder: Path) -> dict[str, float]:
    """Seconds to open, private memory that it added and the process's peak (bytes), and seconds per look-up."""
    before = memory("RssAnon")
    start = time.perf_counter()
    store = ScoreStore(folder)
    seconds = time.perf_counter() - start
    keys = numpy.random.default_rng(1).integers(0, 1 << 64, (5000, 2), dtype=numpy.uint64).tolist()
    start = time.perf_counter()
    found = sum(tuple(key) in store for key in keys)
    assert found == 0
    lookup = (time.perf_counter() - start) / len(keys)
    return {"seconds": seconds, "private": memory("RssAnon") - before, "peak": memory("VmHWM"), "lookup": lookup}


def memory(name: str) -> int:
    """A value of /proc/self/status, bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def reading(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Rows per second, checksums compared, cold and warm in turn."""
    make_store(folder, options.read_rows, options.length)
    ScoreStore(folder).save_index()
    store = ScoreStore(folder)
    table = store.table()
    keys = list(zip(table.columns["high"].tolist(), table.columns["low"].tolist(), strict=True))
    draw = numpy.random.default_rng(2)
    pace: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(options.repeats):
        chosen = [keys[at] for at in draw.permutation(len(keys))[:2048]]
        drop_from_page_cache(folder)
        for state in pace:  # the second time the same rows are in the page cache
            start = time.perf_counter()
            for key in chosen:
                store.read(key)
            pace[state].append(len(chosen) / (time.perf_counter() - start))
    worst = percentiles("", pace["cold"], 0)["_p20"]
    return {
        **conditions("numpy"),
        "what": "read",
        "rows": options.read_rows,
        "length": options.length,
        **percentiles("cold_rows_per_s", pace["cold"], 0),
        **percentiles("warm_rows_per_s", pace["warm"], 0),
        "needed_rows_per_s_at_peak": round(NEEDED_ROWS_PER_SECOND),
        "cold_p20_over_needed": round(worst / NEEDED_ROWS_PER_SECOND, 1),
    }


def drop_from_page_cache(folder: Path) -> None:
    """Drop the store's files from the page cache."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


if __name__ == "__main__":
    main()
