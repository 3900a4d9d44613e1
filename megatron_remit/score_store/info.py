"""What is in a store, as text, and how much of a corpus it covers."""

import json
from pathlib import Path

import numpy

from megatron_remit.score_store.keys import BYTES_PER_ROW, Key, KeyTable
from megatron_remit.score_store.reader import ScoreStore

_EDGES = (0.0, 0.01, 0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, float("inf"))
_SAMPLED_ROWS = 2000
_BAR = 40


def info(folder: Path, corpus: set[Key] | None = None) -> str:
    """Manifest, sizes, a histogram of the NLLs (of at most 2000 rows, spaced evenly), and the coverage of ``corpus``.

    Args:
        corpus: keys of the rows that a run reads; None for no coverage.

    Raises:
        UserError: no store, or a damaged one.
    """
    store = ScoreStore(folder)
    identity, table = store.manifest.identity, store.table()
    first_N = table.first_of_key_N()
    distinct = int(first_N.sum())
    size = sum(shard.header.size for shard in store.shards)
    tokens = len(table) * identity.sequence_length
    lines = [
        f"{folder}: {distinct} rows of {identity.sequence_length} tokens, {len(table) - distinct} of them twice",
        f"reference            {identity.reference[:12]} ({store.manifest.created_by.get('reference')})",
        f"tokenizer            {(identity.tokenizer or 'without token strings')[:21]}, {identity.vocabulary} tokens",
        f"attention mask       {'reset at document borders' if identity.reset_attention_mask else 'causal'}",
        f"positions            {'reset at document borders' if identity.reset_position_ids else 'whole row'}",
        f"computed, stored in  {identity.compute_dtype}, {identity.dtype}",
        f"shards               {len(store.shards)}, {size / 1e9:.3f} GB"
        + (f", {size / tokens:.3f} bytes per token" if tokens else ""),
        f"index                {BYTES_PER_ROW} bytes per row, {len(table) * BYTES_PER_ROW / 1e6:.1f} MB",
    ]
    lines += _jobs(store)
    if corpus is not None:
        there = sum(key in store for key in corpus)
        lines.append(
            f"coverage             {there} of {len(corpus)} different rows of the run "
            f"({100 * there / max(len(corpus), 1):.2f} %)"
        )
    if len(table):
        lines += _histogram(store, table, first_N)
    return "\n".join(lines)


def _jobs(store: ScoreStore) -> list[str]:
    counts: dict[str, int] = {}
    for shard in store.shards:
        for job in shard.job.get("merged", [shard.job]):
            text = json.dumps(job, sort_keys=True)
            counts[text] = counts.get(text, 0) + 1
    return [f"scored by            {text} ({count} shards)" for text, count in counts.items()]


def _histogram(store: ScoreStore, table: KeyTable, first_N: numpy.ndarray) -> list[str]:
    high_N, low_N = table.columns["high"][first_N], table.columns["low"][first_N]
    chosen = numpy.unique(numpy.linspace(0, len(high_N) - 1, min(_SAMPLED_ROWS, len(high_N)), dtype=numpy.int64))
    nll = numpy.concatenate([store.read((int(high_N[at]), int(low_N[at]))) for at in chosen])
    share = numpy.histogram(nll, bins=_EDGES)[0] / len(nll)
    low, middle, high = numpy.quantile(nll, [0.01, 0.5, 0.99])
    lines = [
        f"NLL, nats            mean {nll.mean():.4f}, p1 {low:.4f}, p50 {middle:.4f}, p99 {high:.4f} "
        f"(of {len(chosen)} rows)"
    ]
    for left, right, part in zip(_EDGES, _EDGES[1:], share, strict=False):
        lines.append(f"  {left:5g} to {right:5g}  {100 * part:6.2f} %  {'#' * round(_BAR * part / share.max())}")
    return lines
