"""What a corpus may replace, and what a program that was stopped leaves: all of it or nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from megatron_remit.data import corpus_files
from megatron_remit.data.preprocess import preprocess
from megatron_remit.errors import UserError
from megatron_remit.programs.commands import preprocess_command
from tests.ranks import ROOT

TOOL = ROOT / "tools/preprocess_corpus.py"
CORPUS = ["out.bin", "out.idx", "out.json"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def write(tokenizer, tmp_path):
    """Writes tmp_path/out/out.bin, .idx and .json from one document."""
    (tmp_path / "out").mkdir()

    def call(text="one document", prefix=tmp_path / "out" / "out", **options):
        (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
        return preprocess([tmp_path / "text.jsonl"], prefix, "HuggingFaceTokenizer", tokenizer, **options)

    return call


def test_a_corpus_is_replaced_only_with_overwrite(write, tmp_path):
    write()
    before = content(tmp_path / "out")
    with pytest.raises(UserError, match=r"out\.bin, .*out\.idx, .*out\.json exist; .* --overwrite"):
        write("another")
    assert content(tmp_path / "out") == before
    (tmp_path / "out/out/cache").mkdir(parents=True)  # Megatron's sample order of the old corpus
    write("another", overwrite=True)
    assert names(tmp_path / "out") == ["out", *CORPUS] and names(tmp_path / "out/out") == []
    assert content(tmp_path / "out")["out.bin"] != before["out.bin"]


def test_the_old_corpus_comes_back_if_the_new_one_cannot_take_its_place(write, tmp_path, monkeypatch):
    write()
    before = content(tmp_path / "out")
    rename = os.rename

    def fail_at_the_index(source, target):
        if f"idx.tmp-{os.getpid()}" in str(source):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(corpus_files.os, "rename", fail_at_the_index)
    with pytest.raises(OSError, match="Input/output"):
        write("another", overwrite=True)
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize(
    "there",
    [{"out.bin": "weights of a model"}, {"out.json": '{"a": 1}'}, {"out.idx": "index of a book", "out.bin": ""}],
)
def test_overwrite_leaves_alone_what_is_no_corpus(there, write, tmp_path):
    for name, text in there.items():
        (tmp_path / "out" / name).write_text(text)
    with pytest.raises(UserError, match=r"is no file of a corpus: --overwrite leaves it alone"):
        write(overwrite=True)
    assert names(tmp_path / "out") == sorted(there)


def test_a_prefix_that_is_a_folder_is_refused(write, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"--output-prefix .*/out: is a folder; .* such as .*/out/corpus"):
        write(prefix=tmp_path / "out")
    monkeypatch.setattr(sys, "argv", f"x --input a --output-prefix {tmp_path}/new/ --tokenizer-model t".split())
    with pytest.raises(SystemExit):
        preprocess_command()
    assert "new/' names a folder; give the prefix of files" in capsys.readouterr().err
    assert names(tmp_path) == ["out", "text.jsonl"]


def test_a_prefix_where_nothing_can_be_written_is_refused_and_a_new_folder_goes_again(write, tmp_path):
    with pytest.raises(UserError, match=r"--output-prefix .*/text.jsonl/out cannot be written \(Not a directory\)"):
        write(prefix=tmp_path / "text.jsonl/out")
    with pytest.raises(UserError, match=r"no text in it"):
        write("", prefix=tmp_path / "new/folder/out")
    assert names(tmp_path) == ["out", "text.jsonl"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_no_file_and_no_process(number, tokenizer, tmp_path):
    source = tmp_path / "long.jsonl"
    source.write_text((json.dumps({"text": "many words of one long document " * 50}) + "\n") * 20_000)
    flags = ["--input", source, "--output-prefix", tmp_path / "out", "--tokenizer-model", tokenizer, "--workers", "2"]
    with (tmp_path / "log").open("w") as log:
        program = subprocess.Popen([sys.executable, TOOL, *flags], stderr=log, cwd=ROOT)
    workers = []
    try:
        until = time.monotonic() + 60
        while not (
            any(file.stat().st_size for file in tmp_path.glob(f"out.bin.tmp-{program.pid}-*")) and len(workers) >= 2
        ):
            assert time.monotonic() < until
            workers = psutil.Process(program.pid).children()
            time.sleep(0.02)
        program.send_signal(number)
        assert program.wait(timeout=60) == 128 + number
        assert names(tmp_path) == ["log", "long.jsonl"]
        assert f"ended by {number.name}: nothing is left behind" in (tmp_path / "log").read_text()
        assert psutil.wait_procs(workers, timeout=10)[1] == []
    finally:
        program.kill()
        for process in workers:
            if process.is_running():
                process.kill()
        shutil.rmtree(tmp_path)
