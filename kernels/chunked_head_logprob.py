"""NLL straight from hidden states and the output layer's weight, a chunk of tokens at a time.

For a model that is only scored: the full logits never exist. At 8192 tokens and a vocabulary of 131072 they would take
2 GiB in bf16; a chunk takes 96 MiB.

Shape suffixes: S sequence, B microbatch, H hidden, V vocabulary rows of this rank, N = S * B rows, C rows of a chunk,
K parts of a row.
"""

import math
from collections.abc import Callable, Iterator

import torch
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_remit.kernels.vocab_parallel_logprob import Shard, gather_parts, load_implementation

CHUNK_BYTES = 96 * 2**20
"""Memory of a chunk's logits. Enough rows to keep a GPU's matrix units busy, a twentieth of the 2 GiB above."""
ROW_MULTIPLE = 128
"""Rows of a matrix product's tile on a GPU. Each chunk has a multiple of it; only a smaller input has fewer rows."""


def _keep(logits: Tensor) -> Tensor:
    return logits


def all_positions(hidden_sBH: Tensor, sequence_parallel: bool, group: ProcessGroup | None) -> Tensor:
    """Hidden states of all positions as rows, [N, H]; under sequence parallelism a rank holds S / TP positions."""
    if sequence_parallel:
        hidden_sBH = gather_from_sequence_parallel_region(hidden_sBH, group=group)
    return hidden_sBH.flatten(0, 1)


def logits_in_chunks(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    scale_logits: Callable[[Tensor], Tensor] = _keep,
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield ``(rows, logits [C, V])`` for consecutive rows of ``hidden_NH``.

    All chunks share one buffer, so there are no gradients (call it under ``torch.no_grad``), and a chunk's logits are
    gone when the next is asked for. If the whole logits fit into ``chunk_bytes``, they are one chunk and one matrix
    product, the same as that of Megatron's output layer.
    """
    rows, width = hidden_NH.size(0), weight_VH.size(0)
    size = min(rows_of_a_chunk(rows, width * hidden_NH.element_size(), chunk_bytes), rows)
    buffer_CV = hidden_NH.new_empty(size, width)
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        # A product of a few rows runs another routine (one row: that for vectors), whose sums differ in the last bit.
        # So a small rest is computed together with rows that are already done.
        first = max(min(start, stop - ROW_MULTIPLE), 0)
        logits_CV = torch.matmul(hidden_NH[first:stop], weight_VH.t(), out=buffer_CV[: stop - first])
        yield slice(start, stop), scale_logits(logits_CV[start - first :])


def rows_of_a_chunk(rows: int, row_bytes: int, chunk_bytes: int) -> int:
    """Rows of each chunk except the last, which may be smaller.

    All rows if they fit into ``chunk_bytes``; otherwise a multiple of ``ROW_MULTIPLE`` that fits, at least
    ``ROW_MULTIPLE`` itself, chosen so that the chunks are as equal as possible.
    """
    fitting = max(chunk_bytes // row_bytes // ROW_MULTIPLE * ROW_MULTIPLE, ROW_MULTIPLE)
    if rows * row_bytes <= chunk_bytes:
        return rows
    return math.ceil(rows / math.ceil(rows / fitting) / ROW_MULTIPLE) * ROW_MULTIPLE


@torch.no_grad()
def chunked_head_nll(
    hidden_sBH: Tensor,
    weight_VH: Tensor,
    targets_SB: Tensor,
    vocabulary_size: int,
    group: ProcessGroup | None = None,
    implementation: str = "torch",
    sequence_parallel: bool = False,
    scale_logits: Callable[[Tensor], Tensor] = _keep,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """NLL of the targets, [S, B] in nats, without gradients: as ``vocab_parallel_nll`` of the output layer's logits.

    Args:
        hidden_sBH: final hidden states; this rank's positions under sequence parallelism, else all of them.
        weight_VH: this rank's rows of the output weight, or of the embedding where the two are tied. There is no bias,
            as in Megatron's ``GPTModel``.
        targets_SB: int64 ids of all positions, -100 for those to leave out.
        vocabulary_size, group, implementation: as in ``vocab_parallel_nll``.
        sequence_parallel: whether to gather the hidden states first, as Megatron's output layer does.
        scale_logits: Megatron's factor on the logits under muP.
        chunk_bytes: memory for logits.
    """
    hidden_NH = all_positions(hidden_sBH, sequence_parallel, group)
    targets_N = targets_SB.reshape(-1)
    kernels = load_implementation(implementation)
    shard = Shard.of(weight_VH.size(0), vocabulary_size, group)
    parts = [
        kernels.row_statistics(logits_CV[None], targets_N[rows], shard.first, shard.columns)
        for rows, logits_CV in logits_in_chunks(hidden_NH, weight_VH, scale_logits, chunk_bytes)
    ]
    # One collective for all chunks.
    parts_K3N = gather_parts(torch.cat(parts, dim=2), group)
    nll_N, _ = kernels.merge(parts_K3N, targets_N)
    return nll_N.view(targets_SB.shape)
