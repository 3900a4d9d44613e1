"""Record the golden figures of a step again and say how far they moved: ``python -m tests.simulate.renew`` in the
repository's root. ``--dry-run`` leaves the file as it is."""

import argparse

from megatron_remit.simulate.run import Simulator
from tests.simulate import golden


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="only print the differences")
    options = parser.parse_args()
    with Simulator() as simulator:
        found = {recipe: golden.record(recipe, simulator) for recipe in golden.JOBS}
    if golden.FILE.exists():
        report(found)
    if not options.dry_run:
        golden.write(found)
        print(f"wrote {golden.FILE}")


def report(found):
    """Print each figure's relative difference to the file."""
    recorded, expected = golden.read()
    for name, value in golden.versions().items():
        if value != recorded.get(name):
            print(f"{name}: {value} here, {recorded.get(name)} in {golden.FILE.name}")
    for recipe, own in found.items():
        if recipe not in expected:
            print(f"{recipe}: not in {golden.FILE.name} yet")
            continue
        for figure, difference in golden.differences(own, expected[recipe]).items():
            print(f"{recipe:>13}  {figure:<28} {'equal' if not difference else f'{difference:+.2%}'}")


if __name__ == "__main__":
    main()
