"""Estimates with 95 % intervals from runs on several bases and data orders, measured on the same problems.

Two things are drawn at random and both are resampled: the units (a base with all its data orders) and the problems,
which all runs share and which are therefore drawn jointly for all of them. Data orders lie within a base: what they
vary is already in the differences between the means of bases, so drawing them once more would count it twice. Where
there is only one base, its orders are the units.

Three bases give a bootstrap variance that is too small by (n - 1) / n and of which two degrees of freedom remain, so
the percentiles of the bootstrap are too narrow. The variance of each level is therefore taken from its own bootstrap,
corrected by n / (n - 1), and the interval is Student's with Satterthwaite's degrees of freedom.
``tests/flywheel/test_intervals.py`` measures its coverage.

Shape suffixes: R replicates, U units, P problems, T points on the way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

REPLICATES = 1000
Runs = Mapping[tuple[int, str], np.ndarray]
"""(base, order) -> one number of each problem, in the order that all runs share; or [T, P], at points on the way."""
Statistic = Callable[[list[np.ndarray]], np.ndarray]
"""Means of each arm, [R] or [R, T] -> [R]; NaN where there is none."""


@dataclass(frozen=True)
class Interval:
    """An estimate, its 95 % interval, and what it rests on."""

    mean: float
    low: float
    high: float
    bases: int
    orders: int
    """Runs of each arm, over all bases."""
    problems: int
    lacks: tuple[str, ...]
    """The kinds of variation that the interval does not hold."""

    def basis(self, problems: str = "problems") -> str:
        """What the interval rests on; ``problems`` names what was drawn in their place, such as groups of them."""
        counts = ((self.bases, "base"), (self.orders, "run"))
        text = ", ".join(f"{count:,} {name}{'' if count == 1 else 's'}" for count, name in counts)
        text += f", {self.problems:,} {problems}"
        return text + (f"; without the variation of {' and '.join(self.lacks)}" if self.lacks else "")

    def through(self, change: Callable[[float], float]) -> "Interval":
        """The interval under an increasing function."""
        ends = [change(value) for value in (self.mean, self.low, self.high)]
        return Interval(ends[0], ends[1], ends[2], self.bases, self.orders, self.problems, self.lacks)


def mean(runs: Runs, seed: int = 0) -> Interval:
    """Mean over bases of the mean over their orders of the mean over problems."""
    return estimate([runs], lambda arms: arms[0], seed)


def positive_mean(runs: Runs, seed: int = 0) -> Interval:
    """:func:`mean` of what is positive, such as nats a solution: the interval is symmetric in the logarithm."""
    return estimate([runs], lambda arms: np.log(arms[0]), seed).through(lambda value: float(np.exp(value)))


def share(runs: Runs, seed: int = 0) -> Interval:
    """:func:`mean` of what is from 0 to 1, such as the problems solved: the interval is cut there."""
    return mean(runs, seed).through(lambda value: min(max(value, 0.0), 1.0))


def difference(runs: Runs, than: Runs, seed: int = 0) -> Interval:
    """Mean of ``runs`` less that of ``than``, over the bases and orders that both have."""
    return estimate([runs, than], lambda arms: arms[0] - arms[1], seed)


def percent(runs: Runs, than: Runs, seed: int = 0) -> Interval:
    """By how many percent the mean of ``runs`` is above that of ``than`` (negative: below). The interval is symmetric
    in the logarithm of their ratio, so both means must be positive."""
    found = estimate([runs, than], lambda arms: np.log(arms[0]) - np.log(arms[1]), seed)
    return found.through(lambda value: 100 * float(np.expm1(value)))


def reach(runs: Runs, than: Runs, tokens_T: np.ndarray, seed: int = 0) -> Interval:
    """Where on ``tokens_T`` the mean of ``runs`` first comes down to the last value of ``than``, by linear
    interpolation (both [T, P]). The mean is NaN where it never does; ``high`` is infinite where some replicate does
    not."""

    def statistic(arms: list[np.ndarray]) -> np.ndarray:
        return np.array([crossing(tokens_T, curve, end) for curve, end in zip(arms[0], arms[1][:, -1], strict=True)])

    return estimate([runs, than], statistic, seed)


def crossing(x_T: np.ndarray, y_T: np.ndarray, target: float) -> float:
    """The first x at which the line through the points is at or below ``target``; NaN where it is nowhere."""
    below = np.flatnonzero(y_T <= target)
    if not below.size:
        return float("nan")
    at = int(below[0])
    if at == 0:
        return float(x_T[0])
    share = (y_T[at - 1] - target) / (y_T[at - 1] - y_T[at])
    return float(x_T[at - 1] + share * (x_T[at] - x_T[at - 1]))


def estimate(arms: list[Runs], statistic: Statistic, seed: int = 0) -> Interval:
    """A statistic of the means of arms, over the (base, order) that all of them have.

    Raises ValueError where they share none, or differ in their number of problems.
    """
    shared = sorted(set.intersection(*(set(runs) for runs in arms)))
    if not shared:
        raise ValueError("the arms have no base and order in common")
    bases = sorted({base for base, _ in shared})
    units = [[key for key in shared if key[0] == base] for base in bases] if len(bases) > 1 else [[k] for k in shared]
    cubes = [np.stack([np.mean([runs[key] for key in unit], axis=0) for unit in units]) for runs in arms]
    problems = cubes[0].shape[-1]
    if any(cube.shape[-1] != problems for cube in cubes):
        raise ValueError("the arms were measured on different numbers of problems")
    rng = np.random.default_rng(seed)
    even_U, even_P = np.full((1, len(units)), 1 / len(units)), np.full((1, problems), 1 / problems)
    center = float(statistic(_means(cubes, even_U, even_P))[0])
    levels = [(len(units), lambda share: _means(cubes, share, even_P)), (problems, lambda s: _means(cubes, even_U, s))]
    found = [_variance(size, means, statistic, rng) for size, means in levels]
    low, high = _ends(center, [value for value, _ in found], [size for size, _ in levels])
    if any(not whole for _, whole in found):
        high = float("inf")
    most_orders = max(len([key for key in shared if key[0] == base]) for base in bases)
    few = ((len(bases), "bases"), (most_orders, "data orders"), (problems, "problems"))
    lacks = tuple(name for count, name in few if count < 2)
    return Interval(center, low, high, len(bases), len(shared), problems, lacks)


def _means(cubes: list[np.ndarray], share_RU: np.ndarray, share_RP: np.ndarray) -> list[np.ndarray]:
    """Weighted means of each arm: [R], or [R, T] with points on the way."""
    form = "ru,up,rp->r" if cubes[0].ndim == 2 else "ru,utp,rp->rt"
    if len(share_RU) < len(share_RP):
        share_RU = np.broadcast_to(share_RU, (len(share_RP), share_RU.shape[1]))
    if len(share_RP) < len(share_RU):
        share_RP = np.broadcast_to(share_RP, (len(share_RU), share_RP.shape[1]))
    return [np.einsum(form, share_RU, cube, share_RP, optimize=True) for cube in cubes]


def _variance(
    size: int, means: Callable[[np.ndarray], list[np.ndarray]], statistic: Statistic, rng: np.random.Generator
) -> tuple[float, bool]:
    """Variance of the statistic when ``size`` units are drawn anew, corrected for their number, and whether every
    replicate had a value."""
    if size < 2:
        return 0.0, True
    share_RU = rng.multinomial(size, np.full(size, 1 / size), size=REPLICATES) / size
    found = statistic(means(share_RU))
    valid = found[np.isfinite(found)]
    return (float(valid.var()) * size / (size - 1) if valid.size > 1 else 0.0), valid.size == found.size


def _ends(center: float, variances: list[float], sizes: list[int]) -> tuple[float, float]:
    total = sum(variances)
    if total == 0:
        return center, center
    freedom = total**2 / sum(value**2 / (size - 1) for value, size in zip(variances, sizes, strict=True) if value)
    half = float(student.ppf(0.975, freedom) * np.sqrt(total))
    return center - half, center + half


def verdict(change: Interval, than: str) -> str:
    """What an interval in percent allows one to say."""
    if not np.isfinite([change.low, change.high]).all():
        return f"not comparable with {than}"
    if change.high < 0 or change.low > 0:
        near, far = sorted((abs(change.low), abs(change.high)))
        digits = 0 if near >= 1 and round(near) < round(far) else 1
        return f"{'below' if change.high < 0 else 'above'} {than} by {near:.{digits}f} to {far:.{digits}f} %"
    return f"not distinguishable from {than} (interval {change.low:+.0f} to {change.high:+.0f} %)"


def slip(r: float, wrong: float, right: float) -> float:
    """The probability that the optimum gives to a wrong result where a share ``r`` of the results is wrong and the two
    kinds have the weights ``wrong`` and ``right``: the minimum of -r w log p - (1 - r) w' log(1 - p)."""
    return r * wrong / (r * wrong + (1 - r) * right)
