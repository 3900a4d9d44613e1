"""The training corpus through Megatron's own dataset builder, with checks that name the file at fault."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy
from megatron.core import mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.training import get_args, get_tokenizer
from megatron.training.utils import get_blend_and_blend_per_split

from megatron_remit.data.checked import CheckedGPTDataset, beyond_vocabulary
from megatron_remit.data.fixed_rows import FixedRowsDataset
from megatron_remit.errors import UserError

# A corpus up to this many tokens is read through before step 1 (about a second); every sample of a larger one is
# checked when it is drawn.
_FULL_SCAN_TOKENS = 200_000_000


def build_datasets(num_samples: tuple[int, int, int], built_here: Callable[[], bool]) -> list[GPTDataset | None]:
    """Train, validation and test datasets as Megatron's flags describe them, where ``built_here`` says so."""
    args = get_args()
    if args.mock_data:
        dataset_class = MockGPTDataset
    else:
        dataset_class = CheckedGPTDataset if args.row_seed is None else FixedRowsDataset
    return BlendedMegatronDatasetBuilder(dataset_class, list(num_samples), built_here, _dataset_config()).build()


def reads_data(vp_stage: int | None = None) -> bool:
    """Whether this rank reads the corpus: tensor-parallel rank 0 of the first and the last pipeline stage."""
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
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=args.create_attention_mask_in_dataloader,
        object_storage_cache_path=args.object_storage_cache_path,
        mid_level_dataset_surplus=args.mid_level_dataset_surplus,
    )


def check_corpora(args: Any, vocabulary_size: int) -> None:
    """Open every corpus of the run once.

    Raises:
        UserError: a file is missing, holds no token, is cut short, or holds a token id >= ``vocabulary_size``.
    """
    if args.mock_data:
        return
    prefixes = list(_prefixes(args))
    if not prefixes:
        raise UserError("--data-path (or --train-data-path, --data-args-path) is not set; give the prefix of a corpus")
    for prefix in prefixes:
        _check_corpus(prefix, vocabulary_size)


def _prefixes(args: Any) -> Iterable[str]:
    blend, per_split = get_blend_and_blend_per_split(args)
    for one in [blend, *(per_split or [])]:
        if one is not None:
            yield from one[0]


def _check_corpus(prefix: str, vocabulary_size: int) -> None:
    for suffix in (".idx", ".bin"):
        path = Path(prefix + suffix)
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; --data-path takes the prefix of a .bin/.idx pair "
                "(tools/preprocess_corpus.py writes one)"
            )
    if Path(prefix + ".bin").stat().st_size == 0:
        raise UserError(f"{prefix}.bin holds no tokens; an empty corpus cannot be trained on")
    try:
        corpus = IndexedDataset(prefix, mmap=True)
    except (ValueError, AssertionError, OSError) as error:
        raise UserError(f"{prefix}.idx cannot be read ({error}); run tools/preprocess_corpus.py again") from error
    tokens = int(corpus.sequence_lengths.sum())
    if tokens == 0:
        raise UserError(f"{prefix}.idx lists {len(corpus)} documents without any token; the corpus is empty")
    width = numpy.dtype(corpus.index.dtype).itemsize
    found = Path(prefix + ".bin").stat().st_size
    if found < tokens * width:
        raise UserError(f"{prefix}.bin has {found} bytes, its index expects {tokens * width}: the file is cut short")
    if tokens <= _FULL_SCAN_TOKENS:
        largest = int(numpy.memmap(prefix + ".bin", dtype=corpus.index.dtype, mode="r").max())
        if largest >= vocabulary_size:
            raise beyond_vocabulary(f"{prefix}.bin", largest, vocabulary_size)
