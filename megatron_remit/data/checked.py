"""Megatron's GPT dataset with a check of every sample."""

from typing import Any

from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.training import get_args

from megatron_remit.errors import UserError


class CheckedGPTDataset(GPTDataset):
    """Megatron's GPT dataset that refuses a token outside the vocabulary: an embedding look-up would read past its
    end on a GPU, far from the cause."""

    def __getitem__(self, index: int | None) -> dict[str, Any]:
        """One sample: ``tokens``, ``labels`` [s] int64 and the masks (GPTDataset). Raises UserError on a bad token."""
        sample = super().__getitem__(index)
        size = get_args().remit_vocab_size
        largest = max(int(sample["tokens"].max()), int(sample["labels"].max()))
        if largest >= size:
            raise beyond_vocabulary(f"{self.dataset_path} (sample {index})", largest, size)
        return sample


def beyond_vocabulary(where: str, token: int, size: int) -> UserError:
    """The error for a token id that the model has no row for."""
    return UserError(
        f"{where}: token id {token} is beyond the model's vocabulary of {size} tokens; "
        "the corpus was written with another tokenizer: run tools/preprocess_corpus.py with this one"
    )
