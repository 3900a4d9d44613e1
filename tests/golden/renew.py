"""Record the golden curves again and say how far they moved: ``python -m tests.golden.renew`` in the repository's root.

``--dry-run`` leaves the file as it is. Further flags go to the training program, so that

    ATEN_CPU_CAPABILITY=avx2 python -m tests.golden.renew --dry-run --threads 2 --micro-batch-size 4

measures what other instructions, threads and sums change.
"""

import argparse
import tempfile
from pathlib import Path

from tests import ranks
from tests.conftest import make_material
from tests.golden import curves


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="only print the differences")
    parser.add_argument("--threads", type=int, default=1, help="of the training program; the tests use one")
    options, flags = parser.parse_known_args()
    own = ranks.environment()
    ranks.environment = lambda: own | {"OMP_NUM_THREADS": str(options.threads)}
    if (flags or options.threads != 1) and not options.dry_run:
        parser.error("the tests run one thread and no further flags; add --dry-run to measure others")
    with tempfile.TemporaryDirectory() as folder:
        material = make_material(Path(folder))
        found = {objective: curves.record(material, objective, *flags) for objective in curves.FIGURES}
    if curves.FILE.exists():
        report(found)
    if not options.dry_run:
        curves.write(found)
        print(f"wrote {curves.FILE}")


def report(found):
    """Print each figure's largest relative difference to the file."""
    expected_machine, expected = curves.read()
    for name, value in curves.machine().items():
        if value != expected_machine.get(name):
            print(f"{name}: {value} here, {expected_machine.get(name)} in {curves.FILE.name}")
    for objective, own in found.items():
        if own.keys() != expected.get(objective, {}).keys():
            print(f"{objective}: not in {curves.FILE.name} yet, or with other figures")
            continue
        for name, difference in curves.differences(own, expected[objective]).items():
            print(f"{objective:>10}  {name:<15} {'equal' if not difference else f'{difference:.1e}'}")


if __name__ == "__main__":
    main()
