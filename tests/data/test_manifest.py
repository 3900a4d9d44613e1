"""What a corpus says of itself: its tokenizer, and the token that ends its documents; and who refuses it for that."""

import argparse
import json
import sys

import numpy
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from transformers import AutoTokenizer

from megatron_remit.data.checked import check_manifests
from megatron_remit.data.describe import describe
from megatron_remit.data.eod import Eod, RunTokenizer
from megatron_remit.data.manifest import Manifest, check_manifest
from megatron_remit.data.preprocess import preprocess
from megatron_remit.errors import UserError
from megatron_remit.programs.commands import manifest_command
from tests.conftest import write_corpus, write_documents
from tests.hf_models import EOS, PAD

KIND = "HuggingFaceTokenizer"


@pytest.fixture(scope="module")
def instruct(tokenizer, tmp_path_factory):
    """The same vocabulary, id for id, whose end of sequence is another token: that of a chat's turn."""
    folder = tmp_path_factory.mktemp("instruct")
    own = AutoTokenizer.from_pretrained(tokenizer)
    own.eos_token = PAD
    own.save_pretrained(folder)
    return folder


@pytest.fixture
def corpus_of(tmp_path):
    """Writes tmp_path/corpus with a tokenizer, and gives its prefix."""

    def write(tokenizer, **options):
        (tmp_path / "text.jsonl").write_text('{"text": "one document"}\n{"text": "another"}\n')
        preprocess([tmp_path / "text.jsonl"], tmp_path / "corpus", KIND, tokenizer, overwrite=True, **options)
        return str(tmp_path / "corpus")

    return write


def in_training(prefix, tokenizer, rank=0):
    """The check that a training program makes before step 1."""
    args = argparse.Namespace(mock_data=False, rank=rank, data_path=[prefix], data_args_path=None)
    vars(args).update(dict.fromkeys(["train_data_path", "valid_data_path", "test_data_path"]))
    args.per_split_data_args_path, args.full_validation, args.multiple_validation_sets = None, False, False
    check_manifests(args, tokenizer)


@pytest.mark.parametrize("check", [check_manifest, in_training])
def test_a_corpus_that_ends_its_documents_with_the_instruct_models_token_is_refused(
    check, corpus_of, tokenizer, instruct
):
    base = RunTokenizer.of_folder(tokenizer)
    assert base.fingerprint == RunTokenizer.of_folder(instruct).fingerprint, "the vocabularies cannot tell"
    with pytest.raises(UserError) as refused:
        check(corpus_of(instruct), base)
    for part in ("corpus.json: ", f"'{PAD}' (id 1)", f"{tokenizer} has '{EOS}' (id 0)", f"--eod-token '{EOS}'"):
        assert part in str(refused.value)
    check(corpus_of(instruct, eod_token=EOS), base)
    check(corpus_of(instruct, append_eod=False), base)
    check(corpus_of(tokenizer), base)


@pytest.mark.parametrize("check", [check_manifest, in_training])
def test_a_corpus_of_another_tokenizer_is_refused(check, corpus_of, tokenizer):
    other = RunTokenizer("hf/base", "0" * 64, Eod(EOS, 0))
    with pytest.raises(
        UserError, match=r"corpus\.json: written with another tokenizer .* than hf/base \(000000000000\)"
    ):
        check(corpus_of(tokenizer), other)
    check(corpus_of(tokenizer), RunTokenizer("null", None, None))


def test_an_older_manifest_is_read_and_what_it_does_not_say_is_said(corpus_of, tokenizer, tmp_path, capsys):
    prefix, base = corpus_of(tokenizer), RunTokenizer.of_folder(tokenizer)
    manifest = json.loads((tmp_path / "corpus.json").read_text())
    del manifest["eod"]
    (tmp_path / "corpus.json").write_text(json.dumps(manifest))
    in_training(prefix, base)
    assert capsys.readouterr().out.endswith(
        "corpus.json: does not name the token that ends the documents; it is not checked\n"
    )
    (tmp_path / "corpus.json").unlink()
    in_training(prefix, base)
    in_training(prefix, base, rank=1)
    (line,) = capsys.readouterr().out.splitlines()
    assert "corpus: has no manifest, so its tokenizer is not checked" in line
    assert f"`megatron-remit manifest --prefix {prefix}" in line


@pytest.mark.parametrize("text", ["{", "[]", '{"tokenizer_fingerprint": 1, "tokens": 1}', "[" * 100_000])
def test_a_damaged_manifest(text, corpus_of, tokenizer, tmp_path):
    prefix = corpus_of(tokenizer)
    (tmp_path / "corpus.json").write_text(text)
    with pytest.raises(UserError, match=r"corpus\.json: not a manifest .*; `megatron-remit manifest --prefix"):
        check_manifest(prefix, RunTokenizer.of_folder(tokenizer))
    with pytest.raises(UserError, match=r"corpus\.json: not a manifest"):
        in_training(prefix, RunTokenizer.of_folder(tokenizer))


def test_the_manifest_of_a_corpus_of_another_tool(corpus_of, tokenizer, instruct, tmp_path):
    """The same as the one that is written with the corpus, but for the texts, which nobody can know."""
    for options in ({}, {"append_eod": False}):
        prefix = corpus_of(tokenizer, **options)
        written = Manifest.read(prefix)
        (tmp_path / "corpus.json").unlink()
        found = describe(tmp_path / "corpus", KIND, tokenizer)
        assert found == Manifest.read(prefix)
        assert vars(found) | {"sources": written.sources} == vars(written)
    # The documents tell the token, not the tokenizer that is named.
    prefix = corpus_of(instruct)
    found = describe(tmp_path / "corpus", KIND, tokenizer, overwrite=True)
    assert found.append_eod and found.eod == Eod(PAD, 1)


def test_documents_of_several_parts_and_of_none(tokenizer, tmp_path):
    builder = IndexedDatasetBuilder(str(tmp_path / "corpus.bin"), dtype=numpy.uint16)
    builder.add_document(torch.tensor([5, 6, 7, 0]), [2, 2])
    builder.add_document(torch.tensor([], dtype=torch.int64), [])
    builder.add_document(torch.tensor([8, 0]), [2])
    builder.finalize(str(tmp_path / "corpus.idx"))
    found = describe(tmp_path / "corpus", KIND, tokenizer)
    assert (found.documents, found.tokens, found.append_eod) == (3, 6, True)


def test_corpora_that_get_no_manifest(tokenizer, tmp_path, monkeypatch):
    def refused(message, name="corpus", **options):
        with pytest.raises(UserError, match=message):
            describe(tmp_path / name, KIND, tokenizer, **options)
        assert not (tmp_path / f"{name}.json").exists()

    refused(r"--prefix .*corpus: .*corpus\.bin: no such file")
    write_documents(tmp_path / "corpus", [torch.tensor([5, 0]), torch.tensor([5, 6]), torch.tensor([7, 0])])
    refused(rf"corpus: 2 of 3 documents end with '{EOS.replace('|', '.')}' \(id 0\) and the others do not")
    write_corpus(tmp_path / "large", 500)
    refused(r"large\.bin: token id 49\d is beyond the model's vocabulary of 400 tokens", "large")
    write_corpus(tmp_path / "short", 400)
    (tmp_path / "short.bin").write_bytes((tmp_path / "short.bin").read_bytes()[:-2])
    refused(r"short\.bin has \d+ bytes, its index expects \d+", "short")
    write_corpus(tmp_path / "there", 400)
    (tmp_path / "there.json").write_text("{}")
    for flag, message in (("", r"there\.json exists; pass --overwrite"), ("--overwrite", "is no manifest of a corpus")):
        monkeypatch.setattr(sys, "argv", f"x --prefix {tmp_path}/there --tokenizer-model t {flag}".split())
        with pytest.raises(UserError, match=message):
            manifest_command()


def test_the_command_says_what_the_corpus_holds(tokenizer, tmp_path, monkeypatch, capsys):
    write_corpus(tmp_path / "corpus", 400)
    monkeypatch.setattr(sys, "argv", f"x --prefix {tmp_path}/corpus --tokenizer-model {tokenizer}".split())
    manifest_command()
    assert f"corpus.json: 300 documents, each ended by '{EOS}' (id 0); " in capsys.readouterr().out
    check_manifest(str(tmp_path / "corpus"), RunTokenizer.of_folder(tokenizer))
