"""The corpus tool: the tokens of each document in order, or an error that names the line."""

import gzip
import json

import numpy
import pytest
import sentencepiece
from megatron.core.datasets.indexed_dataset import IndexedDataset
from transformers import AutoTokenizer

from megatron_remit.data.preprocess import preprocess
from megatron_remit.errors import UserError
from tests.hf_models import EOS, PAD
from tests.ranks import ROOT, run_command

TEXTS = [f"Document {i}: the quick brown fox ünïcode {i * i}\nsecond line" for i in range(300)]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "id": i}) for i, text in enumerate(TEXTS)) + "\n\n")
    return path


def run(source, tokenizer, prefix, kind="HuggingFaceTokenizer", **options):
    return preprocess([source], prefix, kind, tokenizer, **options)


def left_behind(folder, source):
    return [path.name for path in folder.iterdir() if path != source]


@pytest.mark.parametrize("workers", [1, 2])
def test_tokens_equal_the_tokenizers_own_with_eod_after_each_document(workers, source, tokenizer, tmp_path):
    counts = run(source, tokenizer, tmp_path / "out", workers=workers)
    own = AutoTokenizer.from_pretrained(tokenizer)
    corpus = IndexedDataset(str(tmp_path / "out"))
    assert len(corpus) == counts.documents == len(TEXTS)
    assert corpus.index.dtype == numpy.uint16
    for index, text in enumerate(TEXTS):
        assert corpus[index].tolist() == [*own.encode(text, add_special_tokens=False), own.eos_token_id]
    assert counts.tokens == sum(corpus.sequence_lengths) and counts.bytes == source.stat().st_size


def test_the_manifest_names_tokenizer_and_counts(source, tokenizer, tmp_path):
    counts = run(source, tokenizer, tmp_path / "out")
    manifest = json.loads((tmp_path / "out.json").read_text())
    assert manifest["tokens"] == counts.tokens and manifest["vocabulary_size"] == 400
    assert len(manifest["tokenizer_fingerprint"]) == 64
    assert manifest["append_eod"] is True and manifest["eod"] == {"token": EOS, "id": 0}
    assert sorted(left_behind(tmp_path, source)) == ["out.bin", "out.idx", "out.json"]


def test_sentencepiece_and_gzip(source, tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "sp"), vocab_size=120, minloglevel=2
    )
    packed = tmp_path / "text.jsonl.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    run(packed, tmp_path / "sp.model", tmp_path / "out", "SentencePieceTokenizer", append_eod=False)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sp.model"))
    corpus = IndexedDataset(str(tmp_path / "out"))
    assert [corpus[index].tolist() for index in range(len(TEXTS))] == [pieces.encode(text) for text in TEXTS]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', r"text.jsonl:3: not valid JSON"),
        (b'{"body": "x"}', r"text.jsonl:3: no key 'text' \(found: body\)"),
        (b'{"text": 7}', r"text.jsonl:3: 'text' is int, expected a string"),
        (b'{"text": "\xff"}', r"text.jsonl:3: not valid UTF-8"),
        (b'["text"]', r"text.jsonl:3: no key 'text' \(found: list\)"),
        (b"[" * 200_000, r"text.jsonl:3: lists or objects are nested too deeply"),
        (b'{"text": "a", "id": ' + b"1" * 5000 + b"}", r"text.jsonl:3: a number has too many digits"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_line_is_named_and_nothing_is_left(line, message, workers, tokenizer, tmp_path):
    source = tmp_path / "text.jsonl"
    source.write_bytes(b'{"text": "a"}\n{"text": "b"}\n' + line + b"\n")
    with pytest.raises(UserError, match=message):
        run(source, tokenizer, tmp_path / "out", workers=workers)
    assert left_behind(tmp_path, source) == []


def test_a_failed_run_keeps_the_corpus_that_was_there(source, tokenizer, tmp_path):
    run(source, tokenizer, tmp_path / "out")
    before = (tmp_path / "out.bin").read_bytes()
    source.write_text("{")
    with pytest.raises(UserError):
        run(source, tokenizer, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out.bin").read_bytes() == before


def test_an_empty_corpus_is_refused(tokenizer, tmp_path):
    source = tmp_path / "text.jsonl"
    source.write_text('\n\n{"text": ""}\n')
    with pytest.raises(UserError, match=r"text.jsonl: no text in it"):
        run(source, tokenizer, tmp_path / "out")
    assert left_behind(tmp_path, source) == []


def test_missing_files_are_named(source, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"--input .*nothing.jsonl: no such file"):
        run(tmp_path / "nothing.jsonl", tokenizer, tmp_path / "out")
    with pytest.raises(UserError, match=r"--tokenizer-model .*nowhere: no such file"):
        run(source, tmp_path / "nowhere", tmp_path / "out")


def test_a_tokenizer_without_eos_is_refused_unless_eod_is_off(source, tokenizer, tmp_path):
    bare = tmp_path / "bare"
    own = AutoTokenizer.from_pretrained(tokenizer)
    own.eos_token = None
    own.save_pretrained(bare)
    with pytest.raises(UserError, match="--no-append-eod"):
        run(source, bare, tmp_path / "out")
    run(source, bare, tmp_path / "out", append_eod=False)
    assert json.loads((tmp_path / "out.json").read_text())["eod"] is None


def test_another_token_can_end_the_documents(source, tokenizer, tmp_path):
    counts = run(source, tokenizer, tmp_path / "out", eod_token=PAD)
    corpus = IndexedDataset(str(tmp_path / "out"))
    assert {int(corpus[index][-1]) for index in range(counts.documents)} == {1}
    assert json.loads((tmp_path / "out.json").read_text())["eod"] == {"token": PAD, "id": 1}
    with pytest.raises(UserError, match=r"--eod-token '<none>': no token of .*; its special tokens are '<\|endoftext"):
        run(source, tokenizer, tmp_path / "other", eod_token="<none>")


def test_the_command_prints_the_counts(source, tokenizer, tmp_path):
    done = run_command(
        [
            "python",
            ROOT / "tools/preprocess_corpus.py",
            "--input",
            source,
            "--output-prefix",
            tmp_path / "out",
            "--tokenizer-model",
            tokenizer,
        ]
    )
    assert done.returncode == 0, done.output
    assert "300 documents" in done.output and "MB/s" in done.output
