"""The demo: the whole flywheel on a tiny model and a world with errors, several runs of each arm, and the report.

corpora -> a base past its jump -> SFT -> RL = the reference; then, from the same base and on the same tokens, NTP,
ReMiT, and ReMiT with the model before RL as the reference, each in several orders of the data. What is done is not done
again.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

from compare.checks import Checks
from compare.schedule import Node, Schedule
from compare.stages import Stages
from compare.studies import Asked, arm_node
from compare.worlds import SMOKE, Sizes, World

from megatron_remit.artifacts import write_whole
from megatron_remit.errors import UserError, cli

ARMS = ("ntp", "remit", "remit_before_rl")
ORDERS = (1, 2, 3)


def nodes(asked: Asked, world: World, threads: int) -> Iterator[Node]:
    """The stages; the first, which wait for one another, have all threads."""
    name, wide = world.name, asked.world(world.base, threads=threads)

    def stages(stage: str, of: World = wide) -> Stages:
        return asked.stages(of, f"{stage}.{name}")

    yield Node(
        f"data.{name}", lambda: stages("data").make_data(), (), "corpora with errors, a tokenizer, a random model"
    )
    yield Node(f"base.{name}", lambda: stages("base").make_base(), (f"data.{name}",), "a base, trained past its jump")
    needs = (f"references.{name}",)
    yield Node(needs[0], lambda: stages("references").reference(), (f"base.{name}",), "SFT and RL: the reference")
    # The longest of those that wait for nothing else is the first: at the end one core would have no work.
    checks = asked.run_dir / "checks"
    yield Node(f"checks.{name}", lambda: Checks(stages("checks", world), checks).run(), needs, "claims, bit for bit")
    for order in asked.orders:
        for arm in ARMS:
            yield arm_node(asked, "methods", world, arm, order)
    policies = {"base": "base", "after NTP": "methods.ntp.o1", "after ReMiT": "methods.remit.o1"}
    kinds = tuple(f"methods.{arm}.{name}.o1" for arm in ("ntp", "remit"))
    yield Node(f"kinds.{name}", lambda: stages("kinds", world).token_kinds(policies), kinds, "weights by kind of token")


def for_the_report(asked: Asked, world: World, jobs: int) -> None:
    """What the report reads, where it looks for it."""
    for name in ("hf", "data"):
        link = asked.run_dir / name
        link.unlink(missing_ok=True)
        link.symlink_to(Path("worlds") / world.name / name)
    sizes = asked.sizes
    settings = {
        "seed": world.base, "share of wrong problems": world.errors, "sequence_length": 128, "sequences_per_step": 12,
        "epsilon": 0.2, "base_tokens": sizes.base, "second_corpus_tokens": sizes.grow, "mid_tokens": sizes.mid,
        "sft_steps": sizes.sft, "grpo_steps_at_most": sizes.grpo, "orders": len(asked.orders), "runs_at_once": jobs,
    }  # fmt: skip
    done = sorted((asked.run_dir / "done").iterdir(), key=lambda path: path.stat().st_mtime)
    timings = {path.name: json.loads(path.read_text())["seconds"] for path in done}
    for name, content in (("settings", settings), ("timings", timings)):
        write_whole(asked.run_dir / f"{name}.json", json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=1, help="of the base and the corpora")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once, one thread each")
    parser.add_argument("--smoke", action="store_true", help="sizes of a few steps, to try the program itself")
    options = parser.parse_args()
    # Two orders are the fewest that an interval can be made from.
    sizes, orders = (SMOKE, ORDERS[:2]) if options.smoke else (Sizes(), ORDERS)
    asked = Asked(options.run_dir.resolve(), sizes, (options.seed,), orders)
    world = asked.world(options.seed)
    asked.run_dir.mkdir(parents=True, exist_ok=True)
    print(f"The tiny flywheel in {options.run_dir}: 16 to 19 min on two cores; start it again to go on.", flush=True)
    failed = Schedule(asked.run_dir, options.jobs).run(list(nodes(asked, world, options.jobs)))
    if failed:
        raise UserError(f"{', '.join(failed[:3])} did not end well; see {options.run_dir}/logs")
    for_the_report(asked, world, options.jobs)
    # Imported late: --help need not wait for torch and transformers.
    from report.build import build_report

    build_report(options.run_dir)


if __name__ == "__main__":
    cli(main)
