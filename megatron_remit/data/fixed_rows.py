"""Rows that do not change with the order of training: the same in every epoch, for every ``--seed`` and blend.

Megatron's GPT dataset draws the order of the documents, and with it where a row begins and ends, from ``--seed`` and
from the number of epochs. Here the rows are those of one epoch, cut in a document order drawn from ``--row-seed``;
``--seed`` only orders them, anew in each epoch. What is stored about a row then serves every later run.
"""

import copy
from typing import Any

import numpy
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from megatron.training import get_args

from megatron_remit.data.checked import CheckedGPTDataset


class FixedRowsDataset(CheckedGPTDataset):
    """``num_samples`` draws from the rows of one epoch: epoch after epoch, each a permutation of them."""

    def __init__(
        self,
        indexed_dataset: IndexedDataset,
        dataset_path: str | None,
        indexed_indices: numpy.ndarray,
        num_samples: int | None,
        index_split: Split,
        config: GPTDatasetConfig,
    ) -> None:
        """Signature of Megatron's ``GPTDataset``; ``num_samples`` None is one epoch."""
        rows_config = copy.copy(config)
        rows_config.random_seed = get_args().row_seed
        super().__init__(indexed_dataset, dataset_path, indexed_indices, None, index_split, rows_config)
        self.num_samples = num_samples
        self._order_seed = config.random_seed
        self._rows = super().__len__()
        self._epoch = -1
        self._order = numpy.empty(0, dtype=numpy.uint32)

    def __len__(self) -> int:
        return self._rows if self.num_samples is None else self.num_samples

    def __getitem__(self, index: int | None) -> dict[str, Any]:
        """One sample (GPTDataset). Raises UserError on a bad token."""
        if index is None:
            return super().__getitem__(None)
        epoch, place = divmod(int(index), self._rows)
        if epoch != self._epoch:
            draw = numpy.random.RandomState([self._order_seed, epoch])
            self._order, self._epoch = draw.permutation(self._rows).astype(numpy.uint32), epoch
        return super().__getitem__(int(self._order[place]))
