"""All methods and controls on the tiny world: several bases, several orders of the data, some runs at once.

What is done is not done again; interrupt it and start it again as you like. The figures of each model are in
RUN_DIR/eval/*.json.
"""

import argparse
import os
from pathlib import Path

from compare.arms import ARMS
from compare.schedule import Schedule
from compare.studies import LARGER, SHARES, STUDIES, Asked, together
from compare.worlds import SMOKE, Sizes

from megatron_remit.errors import UserError, cli


def share(text: str) -> float:
    """A share of the problems. Raises ValueError or ArgumentTypeError, which argparse puts in words."""
    found = float(text)
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a share from 0 to 1, such as 0.3")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/compare"))
    parser.add_argument("--study", nargs="+", choices=STUDIES, default=["methods"])
    parser.add_argument("--bases", nargs="+", type=int, default=[1, 2, 3], help="seeds of bases")
    parser.add_argument("--orders", nargs="+", type=int, default=[1, 2, 3], help="seeds of the order of the data")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--shares", nargs="+", type=share, default=SHARES, help="of wrong problems, for errors")
    parser.add_argument("--sizes", nargs="+", choices=LARGER, default=LARGER, help="of the models, for size")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once, one thread each")
    parser.add_argument("--smoke", action="store_true", help="sizes of a few steps, to try the program itself")
    parser.add_argument("--list", action="store_true", help="print what would be done")
    options = parser.parse_args()
    asked = Asked(
        options.run_dir.resolve(),
        SMOKE if options.smoke else Sizes(),
        options.bases,
        options.orders,
        options.arms,
        options.shares,
        options.sizes,
    )
    todo = together(asked, options.study)
    if options.list:
        print("\n".join(node.name for node in todo))
        return
    failed = Schedule(asked.run_dir, options.jobs).run(todo)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(todo)} did not end well: {', '.join(failed[:5])}; see {asked.run_dir}/logs"
        )


if __name__ == "__main__":
    cli(main)
