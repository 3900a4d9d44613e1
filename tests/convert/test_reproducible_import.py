"""Two imports of one model are the same bytes, file by file, in other processes and at another path."""

import subprocess
import sys

import pytest

from tests.hf_models import make_model
from tests.ranks import ROOT, environment
from tests.rl_folders.edit import SMALL


@pytest.mark.slow  # two fresh processes: hashes of strings are drawn once a process
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_two_imports_are_the_same_bytes(family, tmp_path):
    make_model(family, tmp_path / "hf", **(SMALL if family == "llama" else {}))
    found = []
    for seed, out in (("1", tmp_path / "one"), ("2", tmp_path / "deeper" / "two")):
        command = [sys.executable, ROOT / "tools/import_hf.py", "--hf", tmp_path / "hf", "--out", out]
        subprocess.run(command, cwd=ROOT, env=environment() | {"PYTHONHASHSEED": seed}, check=True)
        found.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    one, two = found
    assert len(one) > 6 and [name for name in one | two if one.get(name) != two.get(name)] == []
