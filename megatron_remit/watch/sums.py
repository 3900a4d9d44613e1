"""Sums over the tokens of a step: figures by source of the blend, and histograms. Pure torch.

Each microbatch adds to the sums on its rank without a word to the host, and one all-reduce of some hundred numbers ends
the step. Only one tensor-parallel rank of each counts, the one that reads the data: the others have the same tokens, do
not know the sources, and add zeros.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank, N = B * S tokens, F figures, D sources,
E edges of a histogram, K = E + 1 bins.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

EDGES: dict[str, tuple[float, float, int]] = {"weight": (0.0, 2.0, 40), "delta": (-10.0, 10.0, 80)}
"""Of each histogram: lowest edge, highest edge, bins between them. Below and above there is one more bin."""


@dataclass(frozen=True)
class Histogram:
    """The tokens of a global batch by the value of one figure."""

    counts: list[float]
    """Tokens by bin: below the first edge, between neighbours (the lower one included), from the last edge on."""
    edges: list[float]
    total: float
    """Sum of the values."""
    squares: float
    """Sum of their squares."""


@dataclass(frozen=True)
class StepFigures:
    """What a step's sums come to, over all ranks."""

    by_source: dict[str, list[float]] = field(default_factory=dict)
    """Mean over the source's unmasked tokens by figure, each source in its place; NaN for one without a token."""
    tokens_by_source: list[float] = field(default_factory=list)
    """Unmasked tokens."""
    histograms: dict[str, Histogram] = field(default_factory=dict)


class StepSums:
    """The sums of the present step on this rank."""

    def __init__(self, num_sources: int) -> None:
        self._num_sources = num_sources
        self._names: tuple[str, ...] = ()
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(
        self, figures_BS: Mapping[str, Tensor], mask_BS: Tensor, source_B: Tensor | None, counts: bool, binned: bool
    ) -> None:
        """Add a microbatch.

        Args:
            figures_BS: values per token by name; the same names throughout a step.
            mask_BS: 1 for tokens that count, 0 for the others.
            source_B: each sequence's ``dataset_id``; None where the rank does not know it.
            counts: whether this rank's tokens count, or are another's.
            binned: whether the step has histograms.
        """
        self._names = tuple(figures_BS)
        mask_BS = mask_BS.float()
        if self._num_sources:
            self._add("sources", self._table(figures_BS, mask_BS, source_B))
        if binned:
            for name in EDGES.keys() & figures_BS.keys():
                mask_N = mask_BS.reshape(-1) * float(counts)
                self._add(name, bins(figures_BS[name].reshape(-1).float(), mask_N, name))

    def _table(self, figures_BS: Mapping[str, Tensor], mask_BS: Tensor, source_B: Tensor | None) -> Tensor:
        """Sums over the tokens of each source, [F + 1, D] float64: of each figure, then of the mask."""
        if source_B is None:
            shape = (len(figures_BS) + 1, self._num_sources)
            return torch.zeros(shape, dtype=torch.float64, device=mask_BS.device)
        stacked_FBS = torch.stack([value_BS.float() * mask_BS for value_BS in figures_BS.values()] + [mask_BS])
        sums_FB = stacked_FBS.sum(dim=2, dtype=torch.float64)
        # A product in place of index_add, whose order a GPU does not fix.
        place_BD = torch.nn.functional.one_hot(source_B.to(mask_BS.device).long(), self._num_sources)
        return sums_FB @ place_BD.double()

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def finish(self, group: ProcessGroup | None) -> StepFigures | None:
        """The figures of the step over the ranks of ``group``, which must all call it; None if nothing was added. The
        sums are zero again."""
        sums, self._sums = dict(sorted(self._sums.items())), {}
        if not sums:
            return None
        flat = torch.cat([value.reshape(-1) for value in sums.values()])
        if group is not None and group.size() > 1:
            torch.distributed.all_reduce(flat, group=group)
        parts = dict(zip(sums, flat.cpu().split([value.numel() for value in sums.values()]), strict=True))
        table = parts.pop("sources", None)
        histograms = {name: _histogram(name, value.tolist()) for name, value in parts.items()}
        if table is None:
            return StepFigures(histograms=histograms)
        *totals_FD, tokens_D = table.view(-1, self._num_sources)
        means = {name: (total_D / tokens_D).tolist() for name, total_D in zip(self._names, totals_FD, strict=True)}
        return StepFigures(means, tokens_D.tolist(), histograms)


def bins(value_N: Tensor, mask_N: Tensor, name: str) -> Tensor:
    """Unmasked tokens by bin, then the sum of their values and that of the squares, [K + 2] float64."""
    low, high, between = EDGES[name]
    edges_E = torch.linspace(low, high, between + 1, dtype=torch.float32, device=value_N.device)
    bin_N = torch.bucketize(value_N, edges_E, right=True)
    counts_K = torch.zeros(between + 2, dtype=torch.float64, device=value_N.device)
    # Whole numbers: their order leaves no trace.
    counts_K.index_add_(0, bin_N, mask_N.double())
    kept_N = (value_N * mask_N).double()
    return torch.cat([counts_K, kept_N.sum().view(1), (kept_N * value_N).sum().view(1)])


def _histogram(name: str, values: list[float]) -> Histogram:
    low, high, between = EDGES[name]
    edges = torch.linspace(low, high, between + 1, dtype=torch.float64).tolist()
    return Histogram(values[:-2], edges, values[-2], values[-1])
