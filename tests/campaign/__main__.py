"""``python -m tests.campaign``: kills, faults and bad inputs, drawn from a seed; ends with one table of figures.

    --seed N       the moments, places and order that are drawn (default 0)
    --only KIND    kills, faults or inputs
    --number N     so many of each kind (default: 20 kills, 40 faults, all inputs)

Ends with exit status 1 if anything was lost, wrong, or not said clearly.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from megatron_remit.versions import versions
from tests.campaign import faults, inputs, kills
from tests.campaign.world import make_world

_GOOD = {"kills": ("right",), "faults": ("refused", "no harm"), "inputs": ("clear",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=tuple(_GOOD))
    parser.add_argument("--number", type=int)
    parser.add_argument("--match", default="", help="of the inputs those whose 'command: name' holds this text")
    parser.add_argument("--world", type=Path, metavar="DIR", help="the models and corpora, made there if it is new")
    options = parser.parse_args()
    if options.match:
        options.only = "inputs"
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        world = options.world or Path(scratch) / "world"
        if not world.exists():
            world.mkdir(parents=True)
            make_world(world)
        for kind, run in (("kills", _kills), ("faults", _faults), ("inputs", _inputs)):
            if options.only in (None, kind):
                counts[kind] = run(world, options)
    print(_table(counts, options.seed))
    sys.exit(any(counts[kind][fate] for kind in counts for fate in counts[kind] if fate not in _GOOD[kind]))


def _kills(world: Path, options: argparse.Namespace) -> Counter[str]:
    found: Counter[str] = Counter()
    for kill in kills.run_kills(world, options.number or 20, options.seed):
        found[kill.fate] += 1
        _say(kill.fate, f"kill: {kill.command} after {kill.after:.2f} s", kill.words)
    return found


def _faults(world: Path, options: argparse.Namespace) -> Counter[str]:
    found: Counter[str] = Counter()
    for fault in faults.run_faults(world, options.number or 40, options.seed):
        found[fault.fate] += 1
        _say(fault.fate, f"fault: {fault.reader} with {fault.kind} in {fault.file}", fault.words)
    return found


def _inputs(world: Path, options: argparse.Namespace) -> Counter[str]:
    cases = [case for case in inputs.read_cases() if options.match in f"{case.command}: {case.name}"]
    random.Random(options.seed).shuffle(cases)
    found: Counter[str] = Counter()
    for case in cases[: options.number]:
        outcome = inputs.run_case(case, world)
        found[outcome.fate] += 1
        _say(outcome.fate, f"{case.command}: {case.name} ({outcome.seconds:.1f} s)", outcome.words)
    return found


def _say(fate: str, what: str, words: str) -> None:
    print(f"{fate} | {what} | {' '.join(words.split())[:400]}", flush=True)


def _table(counts: dict[str, Counter[str]], seed: int) -> str:
    """In Markdown, as docs/reliability.md has it."""
    known = {"kills": kills.FATES, "faults": faults.FATES, "inputs": inputs.FATES}
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [f"seed {seed}; {made}", "", "| what | number | |", "|---|---|---|"]
    for kind, found in counts.items():
        figures = ", ".join(f"{found[fate]} {fate}" for fate in known[kind])
        lines.append(f"| {kind} | {found.total()} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
