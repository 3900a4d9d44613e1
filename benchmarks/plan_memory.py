"""The plan's memory of each job script beside that of the simulation, as a table of Markdown.

    python benchmarks/plan_memory.py [--script NAME ...] [--more "FLAGS"] [--holders N]

For the scripts in ``examples/`` with their own settings and models of the published shapes (``benchmarks/shapes``). A
script takes about half a minute on a CPU. Needs what ``megatron-remit plan --simulate`` needs.
"""

import argparse
from pathlib import Path
from typing import Any

from megatron_remit.errors import cli
from megatron_remit.launch.commands import Commands
from megatron_remit.launch.gpus import gpu
from megatron_remit.launch.memory import estimate_ranks
from megatron_remit.launch.plan_checks import place
from megatron_remit.launch.settings import Settings, read
from megatron_remit.launch.slurm import Allocation
from megatron_remit.launch.values import Host
from megatron_remit.simulate.run import simulate_run

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {"olmo1b": "olmo2_1b", "smollm3_3b": "smollm3_3b", "youtu_llm_2b": "youtu_llm_2b", "olmo3_7b": "olmo3_7b"}
"""The recipe of each script, and the folder of its model's config."""
_MICROBATCHES = 4
_GIB = 2**30


def settings_of(recipe: str) -> Settings:
    """What ``examples/remit_RECIPE.sh`` sets, with a model of the published shape for policy and reference."""
    hf = str(ROOT / "benchmarks/shapes" / SHAPES[recipe])
    given = {"BASE_HF": hf, "RL_HF": hf, "CORPUS": "corpus", "RUN_DIR": "run", "CONTAINER_IMAGE": "image"}
    return read(given, recipe, Host(ROOT, ROOT / f"examples/remit_{recipe}.sh", Allocation()))


def compare(recipe: str, more: list[str]) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Bytes of each simulated rank by the plan, and all that the simulation found, by the rank's name."""
    settings = settings_of(recipe)
    gpus = settings.nodes * settings.gpus_per_node
    # More microbatches than these take time, and no memory to speak of.
    batch = min(settings.global_batch_size, _MICROBATCHES * settings.micro_batch_size * gpus // settings.tp)
    flags = [*Commands.of(settings).training_flags(), "--global-batch-size", str(batch), *more]
    run = place(settings.base_hf, settings.rl_hf, gpus, flags)
    found = simulate_run(settings.base_hf, settings.rl_hf, gpus, flags, gpu(settings.gpu))
    args = run.policy.args
    microbatches = args.global_batch_size // (args.micro_batch_size * args.data_parallel_size)
    stages = estimate_ranks(run.policy, list(run.frozen.values()), microbatches)
    of_rank = {name: stages[int(name.split()[1]) * len(stages) // gpus].peak for name in found}
    return of_rank, found


def main() -> None:
    """Print the table, and with ``--holders`` the largest storages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", nargs="+", choices=tuple(SHAPES), default=list(SHAPES))
    parser.add_argument("--more", default="", help="more flags of the training program")
    parser.add_argument("--holders", type=int, default=0, help="print so many of the largest storages of each rank")
    options = parser.parse_args()
    print("| script | rank | plan, GiB | simulated, GiB | plan / simulated |\n|---|---|---|---|---|", flush=True)
    for recipe in options.script:
        planned, found = compare(recipe, options.more.split())
        for name, size in planned.items():
            peak = found[name]["peak"]
            print(
                f"| `remit_{recipe}.sh` | {name.split()[1]} | {size / _GIB:.2f} | {peak / _GIB:.2f} | "
                f"{size / peak:.3f} |"
            )
            for held in found[name]["holders"][: options.holders]:
                print(f"    {held['bytes'] / _GIB:7.3f} GiB  {held['phase']}: {held['line']}")


if __name__ == "__main__":
    cli(main)
