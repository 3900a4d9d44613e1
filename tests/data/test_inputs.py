"""Inputs of the corpus tool other than plain JSONL: the same documents, or an error that names file and line or row."""

import gzip
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megatron_remit.data.documents import blocks
from megatron_remit.errors import UserError
from megatron_remit.programs.commands import preprocess_command

TEXTS = [f"document {number} ünïcode\nsecond line " + "x" * number for number in range(3000)]
LINES = [json.dumps({"text": text}).encode() + b"\n" for text in TEXTS]


def packed(data):
    return zstandard.ZstdCompressor().compress(data)


def as_parquet(path, texts=TEXTS, kind=None, **options):
    table = pyarrow.table({"id": list(range(len(texts))), "text": pyarrow.array(texts, kind)})
    pyarrow.parquet.write_table(table, path, **options)


def texts_of(path, key="text"):
    return [text for block in blocks([path], key) for _, text in block.texts(key)]


def place_of(path, number):
    return [place for block in blocks([path], "text") for place, _ in block.texts("text")][number]


def test_zstandard_and_gzip_files_hold_the_lines(tmp_path):
    whole = b"".join(LINES)
    for name, data in {
        "a.jsonl.zst": packed(whole),
        "b.jsonl.zstd": b"".join(packed(b"".join(LINES[at : at + 700])) for at in range(0, 3000, 700)),  # frames
        "c.json.gz": gzip.compress(whole),
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert texts_of(path) == TEXTS
        assert place_of(path, 7) == f"{path}:8"
        assert sum(block.file_bytes for block in blocks([path], "text")) == len(data)


def test_a_long_window_is_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    path = tmp_path / "long.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor(compression_params=parameters).compressobj().compress(b""))
    with path.open("wb") as file, zstandard.ZstdCompressor(compression_params=parameters).stream_writer(file) as writer:
        writer.write(b"".join(LINES))
    assert texts_of(path) == TEXTS


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), "dictionary"])
def test_parquet_files_hold_the_texts_of_one_column(kind, tmp_path):
    kind = pyarrow.dictionary(pyarrow.int32(), pyarrow.string()) if kind == "dictionary" else kind
    as_parquet(tmp_path / "text.parquet", kind=kind, row_group_size=1000)
    assert texts_of(tmp_path / "text.parquet") == TEXTS
    assert place_of(tmp_path / "text.parquet", 2999) == f"{tmp_path}/text.parquet row 3000"
    read = sum(block.file_bytes for block in blocks([tmp_path / "text.parquet"], "text"))
    assert read == (tmp_path / "text.parquet").stat().st_size


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_file_that_is_cut_short_is_named_with_the_line(suffix, tmp_path):
    path = tmp_path / f"cut.jsonl.{suffix}"
    data = gzip.compress(b"".join(LINES)) if suffix == "gz" else packed(b"".join(LINES))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=rf"cut\.jsonl\.{suffix}:\d+: not a whole (gzip|zstd) file"):
        texts_of(path)


@pytest.mark.parametrize("data", [b"plain text\n", packed(b"x" * 100) + b"garbage"])
def test_what_is_no_zstandard_file(data, tmp_path):
    (tmp_path / "no.zst").write_bytes(data)
    with pytest.raises(UserError, match=r"no\.zst:1: not a whole zstd file"):
        texts_of(tmp_path / "no.zst")


def test_parquet_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "text.parquet"
    as_parquet(path, row_group_size=1000, compression="none", use_dictionary=False)
    with pytest.raises(UserError, match=r"text\.parquet: no column 'body' \(found: id, text\); .* --json-key"):
        texts_of(path, "body")
    with pytest.raises(UserError, match=r"text\.parquet: column 'id' is int64, expected strings"):
        texts_of(path, "id")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"text\.parquet: not a whole parquet file"):
        texts_of(path)
    middle = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(whole)).metadata.row_group(1).column(1).data_page_offset
    path.write_bytes(whole[:middle] + b"\xff" * 64 + whole[middle + 64 :])
    with pytest.raises(UserError, match=r"text\.parquet row 769: damaged there or within 256 rows"):
        texts_of(path)
    as_parquet(path, ["a", None])
    with pytest.raises(UserError, match=r"text\.parquet row 2: 'text' is null"):
        texts_of(path)


@pytest.mark.parametrize(("name", "library"), [("a.parquet", "pyarrow"), ("a.jsonl.zst", "zstandard")])
def test_a_library_that_is_not_installed_is_named(name, library, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"{name}: reading it takes {library}, which cannot be loaded .*install it"):
        texts_of(tmp_path / name)


def test_a_missing_input_is_reported_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", f"x --input {tmp_path}/no.jsonl --output-prefix {tmp_path}/o --tokenizer-model t".split()
    )
    for module in ("megatron_remit.data.preprocess", "megatron.core", "torch"):
        monkeypatch.setitem(sys.modules, module, None)  # an import would fail
    with pytest.raises(UserError, match=r"--input .*no\.jsonl: no such file"):
        preprocess_command()
