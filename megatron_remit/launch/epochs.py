"""How often a run reads each of its corpora."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_remit.errors import UserError

# Up to about four, repeated data is worth as much as new data (Muennighoff et al. 2023, arXiv:2305.16264).
HARMLESS_EPOCHS = 4.0
DEFAULT_MAX_EPOCHS = 20.0


@dataclass(frozen=True)
class Read:
    """A corpus of the run's training blend."""

    prefix: str
    tokens: int
    share: float
    """Of the run's tokens; in a blend it may be that of a weight."""
    epochs: float


def read_per_corpus(
    blend: tuple[Sequence[str], Sequence[float] | None], tokens: Mapping[str, int], train_share: float, total: int
) -> list[Read]:
    """What a run of ``total`` tokens reads of each corpus in ``blend`` (prefixes, and weights or None for sizes).

    Args:
        tokens: by prefix.
        train_share: the part of each corpus that is trained on (``--split``).
    """
    prefixes, weights = blend
    sizes = [float(tokens[prefix]) for prefix in prefixes]
    given = list(weights) if weights is not None else sizes
    shares = [weight / sum(given) for weight in given]
    return [
        Read(prefix, tokens[prefix], share, total * share / (size * train_share))
        for prefix, size, share in zip(prefixes, sizes, shares, strict=True)
    ]


def train_share(split: str | None) -> float:
    """The first of the three numbers of ``--split``, of their sum. Megatron's default is 969, 30, 1."""
    numbers = [float(number) for number in (split or "969,30,1").replace("/", ",").split(",")]
    return numbers[0] / sum(numbers)


def check_epochs(reads: Sequence[Read], limit: float) -> list[str]:
    """Warnings for what is read more often than is harmless.

    Raises:
        UserError: a corpus is read more often than ``limit`` times.
    """
    most = max(reads, key=lambda read: read.epochs)
    if most.epochs > limit:
        raise UserError(
            f"{most.prefix}: its {most.tokens:,} tokens would be read {most.epochs:,.1f} times; shorten the run, give "
            f"it more data, or allow it with --max-epochs {_above(most.epochs)} (MAX_EPOCHS of the job scripts)"
        )
    return [
        f"WARNING {read.prefix} is read {read.epochs:,.1f} times: what is repeated more than about "
        f"{HARMLESS_EPOCHS:g} times teaches less and less"
        for read in reads
        if read.epochs > HARMLESS_EPOCHS
    ]


def _above(epochs: float) -> int:
    return int(epochs) + 1
