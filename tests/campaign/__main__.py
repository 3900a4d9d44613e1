"""``python -m tests.campaign [--seed N] [--only kills|faults|inputs] [--number N]``: prints one table of figures."""

import argparse
import collections
import random
import tempfile
from pathlib import Path

from tests.campaign.inputs import FATES, read_cases, run_case
from tests.campaign.world import make_world


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("kills", "faults", "inputs"))
    parser.add_argument("--number", type=int)
    parser.add_argument("--match", default="", help="only the inputs whose command and name hold this text")
    parser.add_argument("--world", type=Path)
    options = parser.parse_args()
    cases = [case for case in read_cases() if options.match in f"{case.command}: {case.name}"]
    random.Random(options.seed).shuffle(cases)
    fates = collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        world = options.world or Path(scratch)
        if options.world is None:
            make_world(world)
        for case in cases[: options.number]:
            outcome = run_case(case, world)
            fates[outcome.fate] += 1
            print(f"{outcome.fate} | {case.command}: {case.name} | {outcome.seconds:.1f} s | {outcome.words[:400]}", flush=True)
    print({fate: fates[fate] for fate in FATES})


if __name__ == "__main__":
    main()
