"""Cost of the reference: steps of NTP, ReMiT scored online and ReMiT from a score store take turns in one real run.

    python benchmarks/step_overhead.py --csv benchmarks/results/step_overhead_cpu.csv

In theory a ReMiT step takes 8/6 of the floating-point operations of an NTP step (forward 2, backward 4, the
reference's forward 2, in units of parameters times tokens), a throughput ratio of 0.75. With a store it takes as many
as an NTP step. The ratio is that of neighbouring steps, so that slow changes of the machine's speed cancel; the program
prints its 20th, 50th and 80th percentiles. Only the steps with the store look rows up and read them.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import conditions, percentiles, write_csv
from megatron.training import get_args, training

from megatron_remit import patches
from megatron_remit.programs import train
from megatron_remit.scoring.ahead import clock
from megatron_remit.scoring.dataset import ScoredDataset

WARM_UP_STEPS = 6
WAYS = ("ntp", "remit", "stored")


def main() -> None:
    """Make a reference checkpoint and its scores, train in turns, print the ratios and append them to a CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30, help="turns that are counted, of one step per way each")
    add_shape(parser)
    parser.add_argument("--csv", type=Path, help="append the result to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags, reference, store = megatron_flags(options), f"{folder}/reference", f"{folder}/store"
        torchrun(
            "-m", "megatron_remit.pretrain", *flags, "--train-iters", "1", "--save", reference, "--save-interval", "1"
        )
        flags += [
            "--train-iters",
            str(WARM_UP_STEPS + len(WAYS) * options.pairs),
            "--objective",
            "remit",
            "--reference-load",
            reference,
            "--score-store",
            store,
        ]
        torchrun(str(Path(__file__).parents[1] / "tools/score_corpus.py"), *flags)
        seconds = take_turns(flags)
    report(options, seconds)


def torchrun(*command: str) -> None:
    """Run a program in one process under torchrun."""
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", *command],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Add the flags that :func:`megatron_flags` reads."""
    for flag, default in (("hidden-size", 512), ("num-layers", 4), ("seq-length", 256), ("micro-batch-size", 4),
                          ("global-batch-size", 8), ("vocab-size", 4096)):  # fmt: skip
        parser.add_argument(f"--{flag}", type=int, default=default)


def megatron_flags(options: argparse.Namespace) -> list[str]:
    """A decoder of Llama's shape on Megatron's mock data."""
    return (
        f"--num-layers {options.num_layers} --hidden-size {options.hidden_size} --num-attention-heads 8 "
        f"--ffn-hidden-size {options.hidden_size * 8 // 3 // 8 * 8} --swiglu --normalization RMSNorm "
        "--disable-bias-linear "
        "--position-embedding-type rope --untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0 "
        f"--seq-length {options.seq_length} --max-position-embeddings {options.seq_length} --mock-data "
        f"--tokenizer-type NullTokenizer --vocab-size {options.vocab_size} --split 100,0,0 --eval-iters 0 "
        f"--micro-batch-size {options.micro_batch_size} --global-batch-size {options.global_batch_size} "
        "--lr 1e-4 --lr-decay-style constant --log-interval 10"
    ).split()


def take_turns(flags: list[str]) -> dict[str, list[float]]:
    """Seconds of the counted steps by way, and of the reference within those of ``remit``: key ``reference``."""
    sys.argv = [sys.argv[0], *flags, "--score-miss", "online"]
    folder = flags[flags.index("--score-store") + 1]
    os.environ.update(
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="1",
        LOCAL_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=os.environ.get("MASTER_PORT", "29511"),
    )
    # Before the timer, so that the timer is the outermost.
    patches.apply()
    seconds: dict[str, list[float]] = {name: [] for name in (*WAYS, "reference")}
    train_step, scored_sample, count = training.train_step, ScoredDataset.__getitem__, 0

    def timed(*args: Any, **kwargs: Any) -> tuple:
        nonlocal count
        way, options = WAYS[count % len(WAYS)], get_args()
        options.objective = "ntp" if way == "ntp" else "remit"
        options.score_store, options.score_miss = (folder, "error") if way == "stored" else (None, "online")
        start = time.perf_counter()
        result = train_step(*args, **kwargs)
        elapsed = time.perf_counter() - start
        if count >= WARM_UP_STEPS:
            seconds[way].append(elapsed)
            if way == "remit":
                seconds["reference"].append(clock.reference_seconds())
        count += 1
        return result

    ScoredDataset.__getitem__ = lambda self, index: (
        self.dataset[index] if get_args().score_store is None else scored_sample(self, index)
    )
    training.train_step = timed
    train.main()
    return seconds


def report(options: argparse.Namespace, seconds: dict[str, list[float]]) -> None:
    """Print the percentiles and append one row to the CSV."""

    def ratios(way: str) -> list[float]:
        return [ntp / other for ntp, other in zip(seconds["ntp"], seconds[way], strict=True)]

    rest = [
        (remit - reference) / ntp
        for ntp, remit, reference in zip(seconds["ntp"], seconds["remit"], seconds["reference"], strict=True)
    ]
    row = {
        **conditions("torch", "megatron-core"),
        "threads": torch.get_num_threads(),
        **{
            name: getattr(options, name)
            for name in (
                "hidden_size",
                "num_layers",
                "seq_length",
                "micro_batch_size",
                "global_batch_size",
                "vocab_size",
                "pairs",
            )
        },
        **{f"{way}_ms_p50": round(statistics.median(seconds[way]) * 1e3, 2) for way in ("ntp", "remit", "reference")},
        "step_without_reference_over_ntp_p50": round(statistics.median(rest), 4),
        **percentiles("throughput_ratio", ratios("remit"), 4),
        "stored_ms_p50": round(statistics.median(seconds["stored"]) * 1e3, 2),
        **percentiles("stored_throughput_ratio", ratios("stored"), 4),
    }
    for name, value in row.items():
        print(f"{name:>38}: {value}")
    if options.csv:
        rows = list(csv.DictReader(options.csv.open(newline=""))) if options.csv.exists() else []
        rows.append(row)
        names = list(dict.fromkeys(name for one in rows for name in one))
        write_csv(options.csv, [{name: one.get(name, "") for name in names} for one in rows])


if __name__ == "__main__":
    main()
