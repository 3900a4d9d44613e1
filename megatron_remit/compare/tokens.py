"""Which tokens two models judge differently: the table of mean margins."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenMargin:
    """One token's log p_A - log p_B over all its places."""

    token: str
    count: int
    mean: float
    stderr: float
    """Standard error of the mean, nats, as if the places were independent, which in running text they are not quite."""


def token_margins(margin_N: np.ndarray, pieces: list[str], least: int = 10) -> list[TokenMargin]:
    """Tokens that occur at least ``least`` times, the largest mean margin first.

    Spelling counts, the space before it does not: " So" and "So" are one. Of equal means the more frequent comes first.
    """
    # Not np.unique: an array of strings gives each of them the room of the longest.
    ids: dict[str, int] = {}
    group_N = np.array([ids.setdefault(piece.strip(" ") or piece, len(ids)) for piece in pieces])
    count = np.bincount(group_N)
    mean = np.bincount(group_N, margin_N) / count
    spread = np.bincount(group_N, (margin_N - mean[group_N]) ** 2)
    stderr = np.sqrt(spread / np.maximum(count - 1, 1) / count)
    found = [
        TokenMargin(name, int(count[i]), float(mean[i]), float(stderr[i]))
        for name, i in ids.items()
        if count[i] >= least
    ]
    return sorted(found, key=lambda one: (-one.mean, -one.count, one.token))
