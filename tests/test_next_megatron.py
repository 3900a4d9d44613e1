"""``make test-next``: the tests against another megatron-core, here the installed one with a name gone."""

import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import megatron.core
import pytest

from tests.ranks import ROOT

VERSION = "99.0"
GONE = "megatron.core.datasets.gpt_dataset.GPTDataset._get_num_tokens_per_epoch"


def next_wheel(folder):
    """A wheel of a later version, in which one method that this program calls has another name."""
    packages = Path(megatron.core.__file__).parents[2]
    wheel = folder / f"megatron_core-{VERSION}-py3-none-any.whl"
    info = f"megatron_core-{VERSION}.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        for path in sorted((packages / "megatron").rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                content = path.read_bytes()
                if path.name == "gpt_dataset.py":
                    content = content.replace(b"_get_num_tokens_per_epoch", b"_tokens_per_epoch")
                file.writestr(str(path.relative_to(packages)), content)
        metadata = distribution("megatron-core").read_text("METADATA")
        metadata = re.sub(r"(?m)^Version: .*$", f"Version: {VERSION}", metadata)
        file.writestr(f"{info}/METADATA", metadata)
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.mark.slow
def test_what_the_next_megatron_breaks_is_named(tmp_path):
    """The environment of the tests itself stays as it is."""
    own = {"VENV": sys.prefix, "NEXT": str(tmp_path / "next"), "WORKERS": "0", "PIP_NO_COMPILE": "1"}
    tests = ["tests/test_megatron_names.py", "-k", "test_the_name_is_there"]  # in place of all
    done = subprocess.run(
        ["bash", str(ROOT / "tools/test_next.sh"), str(next_wheel(tmp_path)), *tests],
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    sections = dict(part.split(":\n", 1) for part in re.split(r"(?m)^> ", done.stdout) if ":\n" in part)
    assert f"megatron-core {VERSION} in {tmp_path}/next/" in done.stdout
    gone = re.findall(
        r"test_the_name_is_there\[(.*)\]", sections["names that are gone, or replaced and no longer called"]
    )
    assert gone == [GONE]
    assert sections["tests that fail, by file"].split() == ["1", "tests/test_megatron_names.py"]
    assert distribution("megatron-core").version != VERSION
