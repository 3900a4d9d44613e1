"""Faults: a file that a program reads is damaged, or the disk it writes to is full.

A fault is survived if the program refuses it in one line that names the file, or gives what it gives without it.
"""

import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.campaign.commands import COMMANDS, MATERIAL, remove_made, same
from tests.campaign.damage import cut, flip_bit
from tests.campaign.inputs import CACHES, judge
from tests.campaign.world import contents, copy_world, run_flags
from tests.ranks import Run, pretrain

FATES = ("refused", "no harm", "wrong", "unclear")
_RUN = MATERIAL.remit(**run_flags("run") | {"load": "run", "finetune": None, "save": None, "save_interval": None})
_STORE = MATERIAL.flags(objective="remit", score_store="store", row_seed=3)
# What is damaged, and who reads it.
_TARGETS = (
    ("policy/release/__0_0.distcp", "train"),
    ("policy/release/.metadata", "train"),
    ("policy/release/__0_0.distcp", "export"),
    ("policy/release/.metadata", "export"),
    ("reference/release/__0_0.distcp", "score"),
    ("exported/model.safetensors", "import"),
    ("run/iter_0000002/__0_0.distcp", "resume"),
    ("run/iter_0000002/.metadata", "resume"),
    ("corpus.bin", "resume"),
    ("corpus.idx", "resume"),
    ("store/scores-*.safetensors", "from store"),
    ("store/index.safetensors", "from store"),
    ("store/manifest.json", "from store"),
    ("disk", "import"),
    ("disk", "export"),
    ("disk", "preprocess"),
)
_DAMAGE = {"a flipped bit": flip_bit, "cut short": cut}
_DISK_BYTES = 20_000  # enough for what a program prints, too little for what it makes


@dataclass(frozen=True)
class Fault:
    """One fault and what came of it."""

    file: str
    kind: str
    reader: str
    fate: str
    words: str


def run_faults(world: Path, number: int, seed: int) -> Iterator[Fault]:
    """``number`` faults, each in a copy of ``world``."""
    draw = random.Random(seed)
    expected: dict[str, object] = {}
    for count in range(number):
        target, reader = _TARGETS[count % len(_TARGETS)]
        if reader not in expected:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "w"
                copy_world(world, folder)
                run, made = _result(reader, folder, None)
                assert run.returncode == 0, run.failure()
                expected[reader] = made
        kind = "a full disk" if target == "disk" else draw.choice(sorted(_DAMAGE))
        share = draw.random()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "w"
            copy_world(world, folder)
            limit = _DISK_BYTES if target == "disk" else None
            path = folder if limit else next(folder.glob(target))
            if limit is None:
                _DAMAGE[kind](path, share)
            fate, words = _fate(reader, folder, limit, path.name, expected[reader])
            yield Fault(target, kind if limit else f"{kind} at {share:.3f}", reader, fate, words)


def _fate(reader: str, folder: Path, limit: int | None, name: str, expected: object) -> tuple[str, str]:
    before = contents(folder)
    run, made = _result(reader, folder, limit)
    if run.returncode == 0:
        return ("no harm", "") if same(made, expected) else ("wrong", "another result, and not a word")
    after = contents(folder)
    new = [path for path in after if path not in before and Path(path).parts[0] not in CACHES]
    # Of a checkpoint or store its folder may be named.
    names = [] if limit else [name]
    judged, words = judge(run, names, new)
    if judged == "unclear" and not limit and "does not name" in words:
        judged = "clear" if any(part in words for part in ("release", "iter_0000002", "store", "corp")) else judged
    return ("refused", words) if judged == "clear" else ("unclear", f"{judged}: {words}")


def _result(reader: str, folder: Path, limit: int | None) -> tuple[Run, object]:
    """The run, and what it made: files, or the losses of its steps."""
    if reader in COMMANDS and reader != "train":
        command = COMMANDS[reader]
        remove_made(folder)
        run = command.run(folder, limit=limit)
        return run, command.made(folder) if run.returncode == 0 else None
    flags = {"resume": _RUN, "from store": _STORE, "train": MATERIAL.remit()}[reader]
    run = pretrain(1, *flags, cwd=folder, check=False)
    return run, {tag: run.scalars.get(tag) for tag in ("lm loss", "remit loss", "grad-norm")}
