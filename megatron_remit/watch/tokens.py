"""The most up- and down-weighted tokens of a step, with their context. Pure torch.

Each rank keeps its best candidates as rows of numbers; the ranks exchange them once at the end of the step.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank, W positions of the whole sequence,
N = B * S tokens, R rows (tokens), C columns of a row, X tokens of context.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_remit.parallel import own_part, whole_sequence

COUNT = 10
"""Tokens in each direction."""
BEFORE, AFTER = 24, 8
"""Tokens of context on either side."""
_WEIGHT, _DELTA, _NLL, _SAMPLE, _POSITION, _SOURCE, _TOKEN, _FIXED = range(8)
_COLUMNS = _FIXED + BEFORE + AFTER


class ExtremeTokens:
    """The present step's candidates on this rank."""

    def __init__(self) -> None:
        self._candidates: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def add(
        self,
        labels_BS: Tensor,
        mask_BS: Tensor,
        figures_BS: dict[str, Tensor],
        sample_B: Tensor,
        source_B: Tensor | None,
        cp_group: ProcessGroup | None,
    ) -> None:
        """Look for candidates in a microbatch. ``figures_BS`` has ``weight`` and ``nll``, and may have ``delta``;
        ``sample_B`` are the sequences' places in the run, ``source_B`` their ``dataset_id`` if there is a blend.
        Collective over ``cp_group``, the ranks that hold the other parts of the sequences."""
        batch, device = labels_BS.size(0), labels_BS.device
        labels_BW = whole_sequence(labels_BS, cp_group)
        position_S = own_part(torch.arange(labels_BW.size(1), device=device).unsqueeze(0), cp_group).squeeze(0)
        weight_BS = figures_BS["weight"]
        columns_BS = [
            weight_BS.masked_fill(mask_BS == 0, torch.nan),
            figures_BS.get("delta", torch.full_like(weight_BS, torch.nan)),
            figures_BS["nll"],
            sample_B.to(device).unsqueeze(1),
            position_S.unsqueeze(0),
            (torch.full((batch,), -1) if source_B is None else source_B).to(device).unsqueeze(1),
            labels_BS,
        ]
        shape = labels_BS.shape
        fixed_NC = torch.stack([column.double().expand(shape).reshape(-1) for column in columns_BS], dim=1)
        self._candidates.append(
            (
                _with_context(_first(fixed_NC, True), labels_BW, sample_B),
                _with_context(_first(fixed_NC, False), labels_BW, sample_B),
            )
        )

    @torch.no_grad()
    def finish(self, counts: bool, group: ProcessGroup | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """The :data:`COUNT` most up-weighted and the most down-weighted tokens over the ranks of ``group``, which must
        all call it: two tables [R, C] float64 on the CPU. A rank that does not count has seen another's tokens."""
        none_RC = torch.full((COUNT, _COLUMNS), torch.nan, dtype=torch.float64, device=device)
        found, self._candidates = self._candidates if counts else [], []
        tables = []
        for place, up in ((0, True), (1, False)):
            own_RC = _first(torch.cat([*(one[place] for one in found), none_RC]), up)
            parts = [own_RC]
            if group is not None and group.size() > 1:
                parts = [torch.empty_like(own_RC) for _ in range(group.size())]
                torch.distributed.all_gather(parts, own_RC.contiguous(), group=group)
            best_RC = _first(torch.cat(parts), up)
            tables.append(best_RC[~best_RC[:, _WEIGHT].isnan()].cpu())
        return tables[0], tables[1]


def _first(rows_RC: Tensor, up: bool) -> Tensor:
    """The rows of the :data:`COUNT` highest weights (or lowest, if not ``up``), best first.

    Clipped weights are equal: the higher (lower) delta wins, then the earlier token of the run. Rows without a weight
    come last.
    """
    order_R = torch.arange(rows_RC.size(0), device=rows_RC.device)
    sign = -1.0 if up else 1.0
    for column, factor in ((_POSITION, 1.0), (_SAMPLE, 1.0), (_DELTA, sign), (_WEIGHT, sign)):
        # NaN is the largest value to argsort.
        order_R = order_R[(factor * rows_RC[order_R, column]).argsort(stable=True)]
    return rows_RC[order_R[:COUNT]]


def _with_context(fixed_RC: Tensor, labels_BW: Tensor, sample_B: Tensor) -> Tensor:
    """Rows with the tokens around theirs, -1 where the sequence has none."""
    around_X = torch.cat([torch.arange(-BEFORE, 0), torch.arange(1, AFTER + 1)]).to(labels_BW.device)
    row_R = (fixed_RC[:, _SAMPLE, None] == sample_B.to(labels_BW.device).unsqueeze(0)).long().argmax(dim=1)
    place_RX = fixed_RC[:, _POSITION].long().unsqueeze(1) + around_X
    inside_RX = (place_RX >= 0) & (place_RX < labels_BW.size(1))
    context_RX = labels_BW[row_R.unsqueeze(1), place_RX.clamp(0, labels_BW.size(1) - 1)].double()
    return torch.cat([fixed_RC, context_RX.masked_fill(~inside_RX, -1.0)], dim=1)


def described(
    rows_RC: Tensor, direction: str, sources: list[str], decode: Callable[[list[int]], str]
) -> list[dict[str, Any]]:
    """The rows as records for JSON, best first; ``decode`` gives the text of token ids."""
    records = []
    for rank, row in enumerate(rows_RC.tolist(), start=1):
        source, token, context = int(row[_SOURCE]), int(row[_TOKEN]), [int(value) for value in row[_FIXED:]]
        before = [value for value in context[:BEFORE] if value >= 0]
        after = [value for value in context[BEFORE:] if value >= 0]
        records.append(
            {
                "direction": direction,
                "rank": rank,
                "token": decode([token]),
                "token_id": token,
                "weight": row[_WEIGHT],
                "delta": None if row[_DELTA] != row[_DELTA] else row[_DELTA],
                "nll": row[_NLL],
                "sample": int(row[_SAMPLE]),
                "position": int(row[_POSITION]),
                "source": sources[source] if 0 <= source < len(sources) else None,
                "before": decode(before),
                "after": decode(after),
            }
        )
    return records
