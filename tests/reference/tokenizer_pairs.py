"""A base tokenizer with reserved tokens, and what other models of the same tokenizer make of it."""

import json
import shutil
from pathlib import Path

from tests.hf_models import make_tokenizer

RESERVED = [f"<|reserved_{i}|>" for i in range(6)]
TOKENS = 512
FIRST = TOKENS - len(RESERVED)
"""The id of <|reserved_0|>. There are no fillers: all ids between PAD and it are bytes and merges."""


def make_base(folder: Path) -> None:
    """512 tokens: EOS, PAD, bytes and merges, and at the end six reserved ones. As in Ai2's dolma2 tokenizer these
    stand both in the model's vocabulary and among the added tokens."""
    make_tokenizer(folder, FIRST)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    like = content["added_tokens"][0]
    for number, name in enumerate(RESERVED):
        content["model"]["vocab"][name] = FIRST + number
        content["added_tokens"].append(like | {"id": FIRST + number, "content": name})
    path.write_text(json.dumps(content))


def changed(base: Path, folder: Path, change) -> None:
    """``folder`` has the tokenizer of ``base`` after ``change(tokenizer.json's content)``."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(base / "tokenizer_config.json", folder)
    content = json.loads((base / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))


def renamed(content) -> None:
    """As Ai2's RL models have it: reserved tokens got names, at the same ids."""
    vocabulary = content["model"]["vocab"]
    for number, name in ((1, "<|im_start|>"), (2, "<|im_end|>")):
        content["added_tokens"][number - len(RESERVED)]["content"] = name
        vocabulary[name] = vocabulary.pop(RESERVED[number])


def with_appended(content) -> None:
    """A new special token at the end, as ``add_special_tokens`` and ``resize_token_embeddings`` give it."""
    last = content["added_tokens"][-1]
    content["added_tokens"].append(last | {"id": TOKENS, "content": "<|new|>"})


def without_the_last(content) -> None:
    """The policy has a special token that this model lacks."""
    del content["model"]["vocab"][content["added_tokens"].pop()["content"]]


def merges_swapped(content) -> None:
    """Two merges in the other order; every token keeps its id."""
    merges = content["model"]["merges"]
    merges[3], merges[4] = merges[4], merges[3]


def tokens_exchanged(content) -> None:
    """Two tokens of the trained vocabulary have each other's ids."""
    vocabulary = content["model"]["vocab"]
    by_id = {token_id: token for token, token_id in vocabulary.items()}
    vocabulary[by_id[300]], vocabulary[by_id[301]] = 301, 300


def renamed_and_exchanged(content) -> None:
    renamed(content)
    tokens_exchanged(content)
