"""What does not depend on chance, shown on the demo's own models: each claim compares files bit for bit."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open

from compare.stages import Stages
from compare.worlds import TOKENS_PER_STEP
from megatron_remit.artifacts import write_whole

STEPS = 10


class Checks:
    """Short runs from the base with the RL reference, and what they leave."""

    def __init__(self, stages: Stages, out: Path) -> None:
        self._stages, self._world, self._out = stages, stages.world, out
        self._reference = f"--reference-load={self._world.megatron('rl_reference')}"

    def run(self) -> None:
        """All of them, each into ``checks/NAME.json``."""
        self._out.mkdir(parents=True, exist_ok=True)
        self.weights_of_one()
        self.store()
        self.round_trip()

    def weights_of_one(self) -> None:
        """ReMiT with epsilon 0 is next-token prediction."""
        ntp = self._train("check_ntp", "--objective=ntp")
        one = self._train("check_one", "--objective=remit", "--remit-epsilon=0", self._reference)
        self._write("weights-of-one", f"ReMiT with weights of 1 is NTP, bit for bit, after {STEPS} steps", ntp, one)

    def store(self) -> None:
        """Training from a score store is training with the reference online."""
        rows = "--row-seed=1"
        online = self._train("check_online", "--objective=remit", self._reference, rows)
        folder = self._world.folder / "scores/check"
        data = [f"--load={self._world.megatron('base')}", "--use-checkpoint-args", *self._stages.data_flags("mid", 1)]
        # One that a kill left half written is gone over again, and so is one of a reference that has been made anew.
        shutil.rmtree(folder, ignore_errors=True)
        self._stages.torchrun(
            "tools/score_corpus.py", *data, rows, f"--train-iters={STEPS}", self._reference,
            f"--score-store={folder}", "--score-dtype=float32",
        )  # fmt: skip
        stored = self._train("check_stored", "--objective=remit", f"--score-store={folder}", rows)
        claim = f"a run from the score store is the run with the reference online, bit for bit, after {STEPS} steps"
        self._write("store", claim, online, stored)

    def round_trip(self) -> None:
        """The export of an import is the model that was imported."""
        self._stages.export("rl_reference", "check_round_trip")
        claim = "a Hugging Face model comes back from Megatron's format, bit for bit"
        self._write("round-trip", claim, self._world.hf("rl_reference"), self._world.hf("check_round_trip"))

    def _train(self, name: str, *flags: str) -> Path:
        self._stages.pretrain(name, "base", "mid", STEPS * TOKENS_PER_STEP, 5e-4, 5e-5, 1, *flags)
        self._stages.export(name)
        return self._world.hf(name)

    def _write(self, name: str, claim: str, one: Path, other: Path) -> None:
        count, numbers, equal = same_tensors(one, other)
        compared = f"{count} tensors, {numbers:,} numbers of {one.name} and {other.name}"
        content = {"name": name, "claim": claim, "equal": equal, "compared": compared}
        write_whole(self._out / f"{name}.json", json.dumps(content) + "\n")


def same_tensors(one: Path, other: Path) -> tuple[int, int, bool]:
    """How many tensors and numbers the two folders' models have, and whether all are the same, bit for bit."""
    with safe_open(one / "model.safetensors", "pt") as first, safe_open(other / "model.safetensors", "pt") as second:
        names = sorted(first.keys())
        if names != sorted(second.keys()):
            return len(names), 0, False
        numbers, equal = 0, True
        for name in names:
            left, right = first.get_tensor(name), second.get_tensor(name)
            numbers += left.numel()
            if left.dtype != right.dtype or left.shape != right.shape:
                return len(names), numbers, False
            # As bytes, so that NaN and the sign of zero count.
            equal &= bool((left.reshape(-1).view(torch.uint8) == right.reshape(-1).view(torch.uint8)).all())
        return len(names), numbers, equal
