"""Sizes of a comparison, and the worlds that it needs: a base with its corpora and models in a folder of its own."""

from dataclasses import dataclass
from pathlib import Path

from compare.arms import ARMS

SEQUENCE, BATCH = 128, 12
TOKENS_PER_STEP = SEQUENCE * BATCH
PAST_ITS_JUMP = 1.5
"""Nats of a held-out solution, of two steps and of three, below which a base has learned to add; before the jump they
are above 4."""
LEARNED = 0.90
"""The mean reward at which RL ends before its last step; half of the questions are of the other skills."""


SHAPES = {"1M": (128, 344, 4, 4), "5M": (256, 688, 6, 8), "20M": (512, 1376, 6, 8)}
"""Hidden size, feed-forward size, layers, heads of a model of about so many parameters; the first is that of all
studies but one."""


@dataclass(frozen=True)
class Sizes:
    """Of a comparison, and of the demo, which is the beginning of one."""

    base: int = 2_000_000
    grow: int = 1_200_000
    mid: int = 300_000
    sft: int = 120
    grpo: int = 60
    """At most, for the reference; behind an arm exactly so many."""
    grpo_lr: float = 5e-5
    """At 2e-4, 60 steps unlearn what SFT had taught (docs/report.md)."""
    grpo_errors: int = 150
    grpo_errors_lr: float = 1e-4
    """Behind SFT on the corpus' errors, where RL has more to teach."""
    heldout: int = 200
    heldout_skill: int = 40
    points: int = 3
    grown: int = 3
    """How often a base may go through the second corpus until it is past its jump."""
    jump: float = PAST_ITS_JUMP
    reward: float = LEARNED
    fall: float = 0.05
    """By how much the reward may be lower in RL's last quarter than in its first, or than ``reward`` if that is less;
    its standard error is 0.02."""

    @property
    def mid_corpus(self) -> int:
        """Tokens that are enough for each arm."""
        return round(self.mid * max(arm.tokens for arm in ARMS.values())) + TOKENS_PER_STEP


SMOKE = Sizes(
    base=15_360, grow=9_216, mid=9_216, sft=2, grpo=2, grpo_errors=2, heldout=8, heldout_skill=2, points=2, grown=1,
    jump=1e9, reward=2.0, fall=1.0,
)  # fmt: skip
"""A few steps of everything, to try the programs."""


@dataclass(frozen=True)
class World:
    """Corpora and models of one base, one share of errors and one size: ``RUN_DIR/worlds/NAME``."""

    run_dir: Path
    sizes: Sizes
    base: int = 1
    errors: float = 0.3
    size: str = next(iter(SHAPES))
    threads: int = 1

    @property
    def name(self) -> str:
        """Its folder."""
        return f"b{self.base}.e{round(100 * self.errors)}.{self.size}"

    @property
    def folder(self) -> Path:
        """Where everything of it is."""
        return self.run_dir / "worlds" / self.name

    def hf(self, model: str) -> Path:
        """A Hugging Face folder."""
        return self.folder / "hf" / model

    def megatron(self, model: str) -> Path:
        """A Megatron checkpoint."""
        return self.folder / "megatron" / model

    @property
    def data(self) -> Path:
        """The files of make_world.py."""
        return self.folder / "data"
