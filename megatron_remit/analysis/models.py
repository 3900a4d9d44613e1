"""Hugging Face folders: their models and tokenizers, loaded, and checked before any model works for hours."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from megatron_remit.errors import UserError


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder. Raises UserError if it does not load."""
    with _loading(folder):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_model(folder: Path, dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
    """A Hugging Face model for scoring, on CUDA where there is one; ``dtype`` as in transformers. Raises UserError."""
    with _loading(folder):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False
        )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except pickle.UnpicklingError:
        raise UserError(
            f"{folder}: its pickled weights (pytorch_model.bin) are damaged, or would run code; give a folder with "
            "model.safetensors"
        ) from None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: does not load as a Hugging Face model with its tokenizer: {_first_line(error)}"
        ) from None


def start_token(tokenizer: PreTrainedTokenizerBase, folder: Path) -> int:
    """The token from which a text's first one is predicted: end of text, as between the documents of a corpus.

    Raises UserError, naming ``folder``, for a tokenizer that has neither that nor a token for the beginning.
    """
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return token
    raise UserError(f"{folder}: the tokenizer has no end-of-text token, from which the first token would be predicted")


def tokenize(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict], max_tokens: int | None = None
) -> tuple[list[list[int]], list[list[str]]]:
    """Token ids and the slice of the text behind each token, for the ``text`` of each row, cut after ``max_tokens``.

    Whitespace that the tokenizer drops goes to the next token's slice.
    """
    encoded = tokenizer([row["text"] for row in rows], add_special_tokens=False, return_offsets_mapping=True)
    all_pieces = []
    for row, offsets in zip(rows, encoded["offset_mapping"], strict=True):
        pieces, end = [], 0
        for _, stop in offsets[:max_tokens]:
            pieces.append(row["text"][end : max(stop, end)])
            end = max(stop, end)
        all_pieces.append(pieces)
    return [ids[:max_tokens] for ids in encoded["input_ids"]], all_pieces


def check_models(models: dict[str, Path], largest_token: int, teacher: str | None, window: int) -> None:
    """Check what the models' files say against windows of ``window`` tokens and the largest token id of the texts.

    Raises UserError if a model's config or weights cannot be read, it cannot take the window or the token, or has
    another number of output rows than the teacher.
    """
    if window < 1:
        raise UserError(f"--seq-length {window}: expected at least 1 token")
    configs = {name: _config(name, folder) for name, folder in models.items()}
    for name, folder in models.items():
        rows = configs[name].vocab_size
        longest = getattr(configs[name], "max_position_embeddings", None)
        if longest is not None and window > longest:
            raise UserError(f"--seq-length {window}: {folder} was built for sequences of at most {longest} tokens")
        if largest_token >= rows:
            raise UserError(
                f"--model {name}={folder}: its vocab_size is {rows}, but the texts hold token {largest_token}; the "
                "tokenizer in its folder is not the one it was trained with"
            )
        if teacher is not None and rows != configs[teacher].vocab_size:
            raise UserError(
                f"--model {name}={folder}: its output has {rows} rows, the teacher's {configs[teacher].vocab_size}; KL "
                "divergence needs one vocabulary"
            )


def _config(name: str, folder: Path) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
        if not (any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))):
            raise OSError("it holds no *.safetensors or *.bin file")
        for part in folder.glob("*.safetensors"):
            safe_open(part, "pt")  # reads the header only, and finds a file that was cut short
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"--model {name}={folder}: does not load as a Hugging Face model: {_first_line(error)}"
        ) from None
    return config


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
