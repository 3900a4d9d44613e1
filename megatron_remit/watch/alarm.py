"""Two warnings about the weights: they have become those of next-token prediction; the policy has passed its reference.

Pure Python. The figures are those that a run logs (docs/log.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Alarm:
    """Counts how long a figure has been bad, and speaks once until it is good again."""

    least_std: float
    """A ``weight std`` below it says that the weights say nothing."""
    patience: int
    """Logs in a row that it takes; 0 turns the warnings off."""
    policy_is_compared: bool
    """Whether delta is the policy's NLL minus the reference's."""
    _bad: dict[str, int] = field(default_factory=dict)

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """What is to be said after one more log; ``figures`` are its means by tag."""
        found = []
        std, delta = figures.get("weight std"), figures.get("delta mean")
        if std is not None and self._lasts("std", std < self.least_std):
            found.append(
                f"weight std {std:.2g} has been below {self.least_std:g} for {self.patience} logs: the weights are "
                "nearly equal, so that this run is next-token prediction with the cost of a reference; look at delta "
                "(docs/log.md) and whether policy and reference are the same model"
            )
        if delta is not None and self.policy_is_compared and self._lasts("delta", delta < 0):
            found.append(
                f"delta mean {delta:.2g} has been negative for {self.patience} logs: the policy predicts this corpus "
                "better than its reference; what the reference still teaches is in the spread of the weights only, so "
                "compare with next-token prediction, or take a later reference"
            )
        return found

    def _lasts(self, what: str, bad: bool) -> bool:
        """Whether this log is the one that fills the patience."""
        self._bad[what] = self._bad.get(what, 0) + 1 if bad else 0
        return self._bad[what] == self.patience > 0
