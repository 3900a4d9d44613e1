"""Python code in a model folder is never run, and nobody is asked whether it should be."""

import ast
import json
import os
import pickle
import pty
import re
import subprocess
import sys

import pytest
import torch

from megatron_remit.analysis.models import load_model, load_tokenizer
from megatron_remit.convert.hf_side_files import side_files
from megatron_remit.data.eod import RunTokenizer
from megatron_remit.data.token_table import read_table
from megatron_remit.data.tokenizer import folder_fingerprint, load_encoder
from megatron_remit.errors import UserError
from tests.hf_models import make_olmo2
from tests.ranks import ROOT, environment
from tests.trust.attack import MakesFile

CODE = """import os
os.mkdir({made!r})
from transformers import PreTrainedTokenizerFast as Own, Olmo2Config as OwnConfig, Olmo2ForCausalLM as OwnModel
"""


@pytest.fixture
def folder(tmp_path):
    """A model whose tokenizer, config and model are code of the folder, which makes a folder when it is imported."""
    make_olmo2(tmp_path / "hf", vocab_size=515)
    (tmp_path / "hf" / "own.py").write_text(CODE.format(made=str(tmp_path / "made")))
    edits = {
        "tokenizer_config.json": {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}},
        "config.json": {
            "model_type": "own",
            "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
        },
    }
    for name, fields in edits.items():
        path = tmp_path / "hf" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return tmp_path / "hf"


READERS = {
    "fingerprint": folder_fingerprint,
    "corpus": lambda folder: load_encoder("HuggingFaceTokenizer", folder),
    "manifest": RunTokenizer.of_folder,
    "table": read_table,
    "compared_tokenizer": load_tokenizer,
    "compared_model": load_model,
}


@pytest.mark.parametrize("reader", READERS)
def test_code_in_a_folder_is_refused_without_a_question(folder, tmp_path, reader, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(UserError, match=r"never run here|custom code"):
        READERS[reader](folder)
    assert not (tmp_path / "made").exists()


def test_a_terminal_is_not_asked_either(folder, tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    command = [sys.executable, ROOT / "tools/preprocess_corpus.py", "--input", tmp_path / "text.jsonl"]
    command += ["--output-prefix", tmp_path / "out", "--tokenizer-model", folder]
    ours, theirs = pty.openpty()
    os.write(ours, b"y\ny\ny\n")
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2 and "never run here" in done.stderr and "[y/N]" not in done.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("write", [torch.save, lambda harmful, path: path.write_bytes(pickle.dumps(harmful))])
def test_pickled_weights_run_nothing_and_are_refused_in_words(tmp_path, write):
    """The import takes none at all; the comparison reads them with torch's list, as transformers does."""
    make_olmo2(tmp_path / "hf", vocab_size=515)
    (tmp_path / "hf" / "model.safetensors").unlink()
    write(MakesFile(tmp_path / "made"), tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"hf: its pickled weights \(pytorch_model.bin\) are .*would run code"):
        load_model(tmp_path / "hf")
    assert not (tmp_path / "made").exists()


def test_a_pickle_in_a_tokenizers_name_stays_behind(tmp_path):
    make_olmo2(tmp_path / "hf", vocab_size=515)
    before = side_files(tmp_path / "hf")
    for name in ("tokenizer.pt", "tokenizer.pkl", "vocab.bin", "tokenizer.py"):
        torch.save(MakesFile(tmp_path / "made"), tmp_path / "hf" / name)
    assert side_files(tmp_path / "hf") == before


def test_no_auto_class_is_left_to_ask():
    """Where a call says nothing of it, transformers asks on a terminal whether to run the code."""
    calls = 0
    for folder in ("examples", "megatron_remit", "tools", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
                if re.fullmatch(r"Auto\w+\.from_(pretrained|config)", ast.unparse(call.func)):
                    calls += 1
                    stated = {word.arg: ast.unparse(word.value) for word in call.keywords}
                    assert stated.get("trust_remote_code") == "False", f"{path}:{call.lineno}"
    assert calls >= 10
