"""The training corpus through Megatron's own dataset builder, and rows that do not depend on the seed."""

import copy
from collections.abc import Callable
from typing import Any

import numpy
from megatron.core import mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig, MockGPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from megatron.training import get_args, get_tokenizer
from megatron.training.utils import get_blend_and_blend_per_split
from torch.utils.data import Dataset

from megatron_remit.data.checked import CheckedGPTDataset, corpora_of
from megatron_remit.data.row_caches import remove_damaged, row_caches
from megatron_remit.errors import UserError


def build_datasets(num_samples: tuple[int, int, int], built_here: Callable[[], bool]) -> list[Any]:
    """Train, validation and test datasets as Megatron's flags describe them, where ``built_here`` says so, else None.

    With ``--full-validation`` the validation entry is a list of sets.

    Raises:
        UserError: too few rows.
    """
    args = get_args()
    if args.mock_data:
        dataset_class = MockGPTDataset
    else:
        dataset_class = CheckedGPTDataset if args.row_seed is None else FixedRowsDataset
        if args.rank == 0:  # which makes what is missing, before the others look
            remove_damaged(row_caches(args, corpora_of(args)))
    built = BlendedMegatronDatasetBuilder(dataset_class, list(num_samples), built_here, _dataset_config()).build()
    train, valid, test = built
    if args.full_validation:
        rows = args.eval_global_batch_size
        valid = [
            one if one is None else WholeSteps(one, rows) for one in (valid if isinstance(valid, list) else [valid])
        ]
    return [train, valid, test]


def reads_data(vp_stage: int | None = None) -> bool:
    """Whether this rank reads the corpus: tensor-parallel rank 0 of the first and the last pipeline stage, and of those
    between where attention needs the borders of documents."""
    if get_args().dataloader_inter_document_masking:
        return mpu.get_tensor_model_parallel_rank() == 0
    ignore_virtual = vp_stage is None
    ends = mpu.is_pipeline_first_stage(ignore_virtual, vp_stage) or mpu.is_pipeline_last_stage(ignore_virtual, vp_stage)
    return ends and mpu.get_tensor_model_parallel_rank() == 0


def _dataset_config() -> GPTDatasetConfig:
    args = get_args()
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    return GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=blend_per_split,
        multiple_validation_sets=args.multiple_validation_sets,
        full_validation=args.full_validation,
        split=args.split,
        num_dataset_builder_threads=args.num_dataset_builder_threads,
        path_to_cache=args.data_cache_path,
        mmap_bin_files=args.mmap_bin_files,
        tokenizer=get_tokenizer(),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        inter_document_masking=args.dataloader_inter_document_masking,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=args.create_attention_mask_in_dataloader,
        object_storage_cache_path=args.object_storage_cache_path,
        mid_level_dataset_surplus=args.mid_level_dataset_surplus,
        allow_ambiguous_pad_tokens=args.allow_ambiguous_pad_tokens,
    )


class WholeSteps(Dataset):
    """A validation set's rows as far as they fill evaluation steps, each then read once by ``--full-validation``."""

    def __init__(self, dataset: Any, rows_of_step: int) -> None:
        """Raises UserError: there are fewer rows than ``rows_of_step``, those of an evaluation step on all ranks."""
        self.dataset, self.split = dataset, Split.valid
        self._rows = len(dataset) // rows_of_step * rows_of_step
        if self._rows == 0:
            raise UserError(
                f"{dataset.dataset_path}: {len(dataset)} rows for validation are fewer than the {rows_of_step} that "
                "the ranks read at once; give a larger validation set, or leave --full-validation out"
            )

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


class FixedRowsDataset(CheckedGPTDataset):
    """Rows that do not change with the order of training: the same in every epoch, for every ``--seed`` and blend.

    Megatron's GPT dataset draws the order of the documents, and with it where a row begins and ends, from ``--seed``
    and from the number of epochs. Here the rows are those of one epoch, cut in a document order drawn from
    ``--row-seed``; ``--seed`` only orders them, anew in each epoch. What is stored about a row then serves every later
    run.
    """

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
        if self._rows == 0:
            raise UserError(
                f"{dataset_path}: the {index_split.name} split has fewer tokens than one row of --seq-length "
                f"{config.sequence_length}; give a longer corpus or another --split"
            )
        self._epoch = -1
        self._order = numpy.empty(0, dtype=numpy.uint32)

    def __len__(self) -> int:
        # Megatron asks for no sample of a set that is not evaluated, and takes a set without any for an error.
        return self.num_samples or self._rows

    def __getitem__(self, index: int | None) -> dict[str, Any]:
        """One sample (GPTDataset). Raises UserError on a bad token."""
        if index is None:
            return super().__getitem__(None)
        epoch, place = divmod(int(index), self._rows)
        if epoch != self._epoch:
            draw = numpy.random.RandomState([self._order_seed, epoch])
            self._order, self._epoch = draw.permutation(self._rows).astype(numpy.uint32), epoch
        return super().__getitem__(int(self._order[place]))
