"""Kills: a program is killed at a random moment, started again as a job would be, and compared with one that never was.

lost: it cannot go on, or what it left stands in the way. wrong: it goes on and makes something else.
"""

import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.campaign.commands import COMMANDS, OUT, Command, remove_made, same
from tests.campaign.inputs import CACHES
from tests.campaign.world import contents, copy_world
from tests.ranks import killed_after

FATES = ("right", "lost", "wrong")
_KINDS = ("train", "import", "score", "train", "export", "preprocess")
_MOST_TRIES = 4


@dataclass(frozen=True)
class Kill:
    """One kill and what came of it."""

    command: str
    after: float
    """Seconds."""
    fate: str
    words: str


def run_kills(world: Path, number: int, seed: int) -> Iterator[Kill]:
    """``number`` kills that hit a running program; a program that ended before is started anew, and killed earlier."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "w"
        copy_world(world, folder)
        before = _names(folder)
        undisturbed: dict[str, tuple[float, object]] = {}
        for count in range(number):
            name = _KINDS[count % len(_KINDS)]
            command = COMMANDS[name]
            if name not in undisturbed:
                undisturbed[name] = _undisturbed(command, folder)
            seconds, expected = undisturbed[name]
            after = _killed(command, folder, seconds, draw)
            fate, words = _goes_on(command, folder, expected)
            left = _names(folder) - before
            if left and fate == "right":
                fate, words = "lost", f"left behind: {', '.join(sorted(left))}"
            remove_made(folder)
            yield Kill(name, after, fate, words)


def _names(folder: Path) -> set[str]:
    """What is there, without what the command makes and without caches."""
    return {path for path in contents(folder) if not path.startswith(OUT) and Path(path).parts[0] not in CACHES}


def _undisturbed(command: Command, folder: Path) -> tuple[float, object]:
    """The second of two runs is timed: the first also fills the caches."""
    for _ in range(2):
        remove_made(folder)
        start = time.monotonic()
        run = command.run(folder)
        assert run.returncode == 0, run.failure()
    made = command.made(folder)
    remove_made(folder)
    return time.monotonic() - start, made


def _killed(command: Command, folder: Path, seconds: float, draw: random.Random) -> float:
    while True:
        after = draw.uniform(0.05, 1.0) * seconds
        with killed_after(after):
            run = command.run(folder)
        if run.returncode == -9:
            return after
        assert run.returncode == 0, run.failure()
        remove_made(folder)


def _goes_on(command: Command, folder: Path, expected: object) -> tuple[str, str]:
    # What was killed after its last rename is whole, and would only be refused a second time.
    if not command.ranks and same(command.made(folder), expected):
        return "right", ""
    run = command.run(folder)
    if run.returncode != 0:
        return "lost", run.failure()[-600:]
    found = command.made(folder)
    return (
        ("right", "") if same(found, expected) else ("wrong", "the result is another than that of a run without kill")
    )
