"""Statistics of each document inside packed sequences, also where context parallelism splits a document.

Shape suffixes: B microbatch, S sequence positions on this rank, D bins for documents (positions of the whole sequence).
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup


def document_ids(labels_BS: Tensor, end_of_document: int) -> Tensor:
    """Which document of its sequence each label belongs to: 0, 1, .. from the left, int64 of the labels' shape.

    ``labels_BS`` are whole sequences. A document's end token is its last own token. What stands before the first end
    token is document 0, the tail of a document that began in an earlier sequence included.
    """
    ends_BS = (labels_BS == end_of_document).long()
    return ends_BS.cumsum(dim=1) - ends_BS


def document_mean(
    value_BS: Tensor, mask_BS: Tensor, document_ids_BS: Tensor, cp_group: ProcessGroup | None = None
) -> Tensor:
    """Mean over the unmasked tokens of each position's own document, shape and dtype of ``value_BS``.

    Args:
        value_BS: values of this rank's part of the sequences.
        mask_BS: 1 for tokens that count, 0 for the others.
        document_ids_BS: from :func:`document_ids`, this rank's part.
        cp_group: the ranks that hold the other parts of the same sequences, if the sequence is split.

    A document without any unmasked token has mean 0. Sums are taken in float64, so that their order, which a GPU does
    not fix, leaves no trace in a float32 result.
    """
    ranks = 1 if cp_group is None else cp_group.size()
    batch, length = value_BS.shape
    total_2BD = torch.zeros(2, batch, length * ranks, dtype=torch.float64, device=value_BS.device)
    total_2BD[0].scatter_add_(1, document_ids_BS, (value_BS * mask_BS).double())
    total_2BD[1].scatter_add_(1, document_ids_BS, mask_BS.double())
    if ranks > 1:
        torch.distributed.all_reduce(total_2BD, group=cp_group)
    mean_BD = total_2BD[0] / total_2BD[1].clamp(min=1)
    return mean_BD.gather(1, document_ids_BS).to(value_BS.dtype)
