"""The wheel, installed in another environment and run from another folder, has all commands and the files they need."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_remit.programs.cli import COMMANDS
from tests.hf_models import make_olmo2
from tests.ranks import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of what it is made from, so that no earlier build's files are in it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("megatron_remit", "kernels"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", source, "--no-index", "--no-build-isolation", "--wheel-dir", out)
    return next(out.glob("megatron_remit-*.whl"))


@pytest.fixture(scope="module")
def program(wheel, tmp_path_factory):
    """``megatron-remit`` of a new environment, which sees the other packages of this one and not the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    own = Path(folder, "lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages")
    # Lines of such a file are folders. The .pth files inside them, with which the checkout is installed, are not read.
    (own / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")) + "\n")
    pip("--python", folder / "bin/python", "install", "--no-index", wheel)
    return folder / "bin/megatron-remit"


def pip(*arguments):
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--no-deps", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(folder, *command):
    """Run a command in ``folder`` without what makes this checkout importable."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        timeout=300,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_every_module_and_every_file_next_to_them_is_in_the_wheel(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "megatron_remit").rglob("*.py")}
    modules |= {f"megatron_remit/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    files = [path for path in (ROOT / "megatron_remit").rglob("*") if path.suffix in (".html", ".css", ".typed")]
    assert files
    assert modules | {str(path.relative_to(ROOT)) for path in files} <= packed
    assert not [name for name in packed if name.startswith(("tests/", "kernels/", "tools/", "benchmarks/"))]


@pytest.mark.slow
def test_the_console_command_lists_and_runs_all_commands(program, tmp_path):
    for arguments in ((), ("--help",)):
        listed = run(tmp_path, program, *arguments)
        assert listed.returncode == 0, listed.stdout
        for name, command in COMMANDS.items():
            assert f"  {name} " in listed.stdout and command.help in listed.stdout
    unknown = run(tmp_path, program, "nothing")
    assert unknown.returncode == 2 and "invalid choice: 'nothing'" in unknown.stdout
    for name in COMMANDS:
        helped = run(tmp_path, program, name, "--help")
        assert helped.returncode == 0 and f"usage: megatron-remit {name} [-h]" in helped.stdout, helped.stdout


@pytest.mark.slow
def test_a_model_comes_in_and_goes_out_without_the_checkout(program, tmp_path):
    place = run(tmp_path, program.with_name("python"), "-c", "import megatron_remit.kernels as k; print(k.__file__)")
    assert str(program.parents[1]) in place.stdout
    make_olmo2(tmp_path / "hf", vocab_size=300)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(20)))
    for command in (
        ("import", "--hf", "hf", "--out", "megatron"),
        ("preprocess", "--input", "text.jsonl", "--output-prefix", "corpus", "--tokenizer-model", "hf"),
        ("export", "--megatron", "megatron", "--hf-template", "megatron/hf", "--out", "back"),
    ):
        done = run(tmp_path, program, *command)
        assert done.returncode == 0, done.stdout
    assert (tmp_path / "corpus.idx").is_file()
    found, expected = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("back", "hf"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    again = run(tmp_path, program, "import", "--hf", "hf", "--out", "megatron")
    assert again.returncode == 2 and again.stdout.splitlines()[-1].startswith("error: megatron exists: choose another")
