"""The best layout of models of published shapes on 8 to 1,024 GPUs, by ``megatron-remit plan --search``, in Markdown.

    python benchmarks/layouts.py [--gpu H100-80GB] [--gpus 8 64 1024] [--model NAME ...]

Policy and reference have one shape (``benchmarks/shapes``). Nothing runs on a GPU.
"""

import argparse
from pathlib import Path

from megatron_remit.errors import cli
from megatron_remit.launch.gpus import DEFAULT_GPU, GPUS, gpu
from megatron_remit.launch.search import Candidate, search

SHAPES = Path(__file__).resolve().parent / "shapes"
SEQ_LENGTHS = {"olmo2_1b": 4096, "olmo3_7b": 8192, "olmo3_32b": 8192, "llama3_70b": 8192, "qwen3_30b_a3b": 8192}
TOKENS = 8 * 2**20
"""Of a step."""
FLAGS = (
    "--objective remit --train-iters 10000 --lr 1e-4 --bf16 --mock-data --use-distributed-optimizer "
    "--overlap-grad-reduce --overlap-param-gather"
)


def row(model: str, gpus: int, best: Candidate) -> str:
    """A row of the table."""
    layout, step = best.layout, best.step
    sizes = {"TP": layout.tp, "PP": layout.pp, "VPP": layout.virtual, "CP": layout.cp, "EP": layout.ep}
    words = [f"{name} {size}" for name, size in sizes.items() if size > 1] + [f"DP {best.data_parallel}"]
    words += [f"MB {layout.micro_batch}"] + ["recompute"] * layout.recompute + ["offload"] * layout.offload
    return (
        f"| {model} | {gpus:,} | {', '.join(words)} | {best.memory / 2**30:.0f} | {step.speed:,.0f} | "
        f"{step.speed / step.online:,.0f} | {step.online:.2f} | {step.bound} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", default=DEFAULT_GPU, choices=tuple(GPUS))
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 64, 1024])
    parser.add_argument("--model", nargs="+", choices=tuple(SEQ_LENGTHS), default=list(SEQ_LENGTHS))
    options = parser.parse_args()
    print("| model | GPUs | layout | GiB | online | store, NTP | ratio | bound by |\n|---|---|---|---|---|---|---|---|")
    for model in options.model:
        length = SEQ_LENGTHS[model]
        flags = [*FLAGS.split(), "--seq-length", str(length), "--global-batch-size", str(TOKENS // length)]
        for gpus in options.gpus:
            found = search(SHAPES / model, SHAPES / model, gpus, flags, gpu(options.gpu), 8).fitting
            print(row(model, gpus, found[0]) if found else f"| {model} | {gpus:,} | none fits | | | | | |", flush=True)


if __name__ == "__main__":
    cli(main)
