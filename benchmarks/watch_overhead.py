"""Cost of what a run watches: steps with and without it take turns in one real run of ReMiT on a blend.

    python benchmarks/watch_overhead.py --csv benchmarks/results/watch_overhead_cpu.csv

Four ways take turns: ``off`` watches nothing; ``scalars`` has the means and the figures of each source, as every step;
``histograms`` has these and histograms, as every 100th; ``tokens`` has all, with the tokens, as every 1,000th. A step
is timed from its start to the end of its log. Two measures of the cost: ``ratio`` is a step over the ``off`` step of
the same turn, less 1, in per cent, with the machine's noise in it; ``own`` is the time spent inside the watching
functions over that of the step. ``share`` of the last row is the own cost of a run at the default intervals.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from common import conditions, percentiles, write_csv
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder, get_idx_path
from megatron.training import get_args, training
from step_overhead import add_shape, megatron_flags, torchrun

from megatron_remit import patches
from megatron_remit.programs import train
from megatron_remit.watch.run import Watch

WARM_UP_TURNS = 2
# Way -> intervals of histograms and tokens; 0: never.
WAYS = {"off": (0, 0), "scalars": (0, 0), "histograms": (1, 0), "tokens": (1, 1)}


def main() -> None:
    """Make a blend and a reference, train in turns, print the costs and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=24, help="turns that are counted, of one step per way each")
    add_shape(parser)
    parser.add_argument("--csv", type=Path, help="write the result to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = [flag for flag in megatron_flags(options) if flag != "--mock-data"]
        flags += ["--data-path", "0.3", write_corpus(f"{folder}/a", options, 0), "0.7"]
        flags += [write_corpus(f"{folder}/b", options, 1), "--save", f"{folder}/reference", "--save-interval", "100000"]
        torchrun("-m", "megatron_remit.pretrain", *flags, "--train-iters", "1")
        flags[flags.index("--save") + 1] = f"{folder}/run"
        flags += ["--objective", "remit", "--reference-load", f"{folder}/reference"]
        steps = (WARM_UP_TURNS + options.turns) * len(WAYS)
        flags += ["--train-iters", str(steps), "--tensorboard-dir", f"{folder}/log", "--tensorboard-log-interval", "1"]
        step_seconds, own_seconds = take_turns(flags)
    report(options, step_seconds, own_seconds)


def write_corpus(prefix: str, options: argparse.Namespace, seed: int) -> str:
    """Random documents, enough for some hundred steps."""
    draw = numpy.random.default_rng(seed)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.uint16)
    for _ in range(400):
        tokens = draw.integers(1, options.vocab_size, 4 * options.seq_length)
        builder.add_document(torch.from_numpy(tokens), [len(tokens)])
    builder.finalize(get_idx_path(prefix))
    return prefix


def take_turns(flags: list[str]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each counted step by way, and those inside the watching functions."""
    sys.argv = [sys.argv[0], *flags]
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(place | {"MASTER_PORT": os.environ.get("MASTER_PORT", "29513")})
    patches.apply()
    step_seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    own_seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    ways, train_step, training_log = list(WAYS), training.train_step, training.training_log
    now = {"step": 0, "way": "off", "start": 0.0, "own": 0.0}

    def measured(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if now["way"] == "off":
                return args[1].pop("figures", None) if function.__name__ == "collect" else None
            start = time.perf_counter()
            result = function(*args)
            now["own"] += time.perf_counter() - start
            return result

        return call

    for name in ("collect", "end_step", "log"):
        setattr(Watch, name, measured(getattr(Watch, name)))

    def timed_step(*args: Any, **kwargs: Any) -> tuple:
        turn, place = divmod(now["step"], len(ways))
        # Who goes first changes.
        now["way"] = ways[(turn + place) % len(ways)]
        get_args().watch_histogram_interval, get_args().watch_token_interval = WAYS[now["way"]]
        now["own"], now["start"] = 0.0, time.perf_counter()
        return train_step(*args, **kwargs)

    def timed_log(*args: Any, **kwargs: Any) -> Any:
        result = training_log(*args, **kwargs)
        if now["step"] >= WARM_UP_TURNS * len(ways):
            step_seconds[now["way"]].append(time.perf_counter() - now["start"])
            own_seconds[now["way"]].append(now["own"])
        now["step"] += 1
        return result

    training.train_step, training.training_log = timed_step, timed_log
    train.main()
    return step_seconds, own_seconds


def report(
    options: argparse.Namespace, step_seconds: dict[str, list[float]], own_seconds: dict[str, list[float]]
) -> None:
    """Print one row per way and one for a run, and write the CSV."""
    names = ("hidden_size", "num_layers", "seq_length", "micro_batch_size", "global_batch_size", "vocab_size", "turns")
    shared = {name: getattr(options, name) for name in names} | {"threads": torch.get_num_threads()}
    shared |= conditions("torch", "megatron-core", "tensorboard")
    step = statistics.median(step_seconds["off"])
    rows, own = [], {}
    for way in WAYS:
        turns = zip(step_seconds[way], step_seconds["off"], strict=True)
        own[way] = statistics.median(own_seconds[way])
        row = {"way": way, "step_ms_p50": round(statistics.median(step_seconds[way]) * 1e3, 2)}
        row |= percentiles("ratio_percent", [100 * (one / off - 1) for one, off in turns])
        row |= percentiles("own_ms", [1e3 * value for value in own_seconds[way]]) | {"share_percent": ""}
        rows.append(row)
    run = own["scalars"] + (own["histograms"] - own["scalars"]) / 100 + (own["tokens"] - own["histograms"]) / 1000
    rows.append(dict.fromkeys(rows[0], "") | {"way": "run", "share_percent": round(100 * run / step, 3)})
    for row in rows:
        print(" ".join(f"{name} {value}" for name, value in row.items() if value != ""))
    if options.csv:
        write_csv(options.csv, [row | shared for row in rows])


if __name__ == "__main__":
    main()
