"""A corpus that cannot be trained on is refused before step 1, by the file at fault."""

import numpy
import pytest
import torch

from megatron_remit.data import checked
from megatron_remit.data.checked import check_corpora, check_sample
from megatron_remit.errors import UserError
from tests.conftest import VOCABULARY, write_corpus
from tests.test_bad_input import parsed


def test_corpora_that_cannot_be_trained_on(material, tmp_path):
    def check(prefix, vocabulary=VOCABULARY):
        check_corpora(parsed(material.flags(data_path=prefix)), vocabulary)

    check(material.corpus)
    with pytest.raises(UserError, match=r"missing.idx: no such file"):
        check(tmp_path / "missing")
    write_corpus(tmp_path / "empty", VOCABULARY, documents=0)
    with pytest.raises(UserError, match=r"empty.*no tokens"):
        check(tmp_path / "empty")
    largest = int(numpy.fromfile(f"{material.corpus}.bin", dtype=numpy.uint16).max())
    with pytest.raises(UserError, match=rf"corpus.bin: token id {largest} is beyond .* {largest} tokens"):
        check(material.corpus, largest)
    write_corpus(tmp_path / "short", VOCABULARY)
    whole = (tmp_path / "short.bin").read_bytes()
    (tmp_path / "short.bin").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"short.bin has \d+ bytes, its index expects \d+: the file is cut short"):
        check(tmp_path / "short")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda index: index[: len(index) // 2], r"cut short, it has \d+ bytes, its head expects \d+"),
        (lambda index: index[:20], "cut short, it has 20 bytes"),
        (lambda index: b"", "no index of a corpus, it begins with b''"),
        (
            lambda index: index[:17] + b"\x77" + index[18:],
            "its head says version 1 and dtype 119, expected 1 and 1 to 8",
        ),
    ],
)
def test_a_damaged_index_is_refused_before_megatrons_reader_begins(damage, found, material, tmp_path, monkeypatch):
    """Which prints a traceback when it is dropped."""
    monkeypatch.setattr(checked, "IndexedDataset", None)
    write_corpus(tmp_path / "bad", VOCABULARY)
    (tmp_path / "bad.idx").write_bytes(damage((tmp_path / "bad.idx").read_bytes()))
    with pytest.raises(UserError, match=f"bad.idx: .*{found}"):
        check_corpora(parsed(material.flags(data_path=tmp_path / "bad")), VOCABULARY)


def test_a_sample_with_a_token_that_a_model_lacks():
    """Of a corpus that is too large to be read before step 1."""
    sample = {"tokens": torch.tensor([3, 515]), "labels": torch.tensor([515, 516])}
    check_sample(sample, "corpus (sample 7)", 517, None)
    check_sample(sample, "corpus (sample 7)", 600, 517)
    with pytest.raises(UserError, match=r"corpus \(sample 7\): token id 516 is beyond the model's vocabulary of 516"):
        check_sample(sample, "corpus (sample 7)", 516, None)
    with pytest.raises(UserError, match=r"token id 516 is beyond the 515 embedding rows of the reference; use a"):
        check_sample(sample, "corpus (sample 7)", 600, 515)
