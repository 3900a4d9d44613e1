"""RoPE at full length: cosine and sine of every published model are those of transformers, layer by layer."""

import json

import pytest
import torch

from tests.convert.published_configs import PUBLISHED, Published
from tests.convert.rope_ranks import compare
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow

LENGTH = 65536
# What RoPE depends on; a model with a twin in all of this is not tried again.
FIELDS = (
    "architectures rope_theta rope_scaling rope_parameters head_dim qk_rope_head_dim max_position_embeddings".split()
)
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 24,
    "beta_slow": 2,
}
# No published model has these. Latent attention scales its softmax by mscale_all_dim in addition.
MORE = {
    "an attention factor": ("Qwen/Qwen3-0.6B", YARN | {"attention_factor": 0.7}),
    "mscale": ("Qwen/Qwen3-0.6B", YARN | {"mscale": 0.8, "mscale_all_dim": 0.5}),
    "no truncation": ("meta-llama/Llama-3.1-8B", YARN | {"truncate": False}),
    "a factor that the lengths give": ("meta-llama/Llama-3.1-8B", YARN | {"factor": None}),
    "latent attention": ("tencent/Youtu-LLM-2B", YARN | {"mscale": 1.0, "mscale_all_dim": 0.6}),
    "latent attention with one mscale": ("tencent/Youtu-LLM-2B", YARN | {"mscale_all_dim": 0.6}),
    "latent attention with an attention factor": ("tencent/Youtu-LLM-2B", YARN | {"attention_factor": 1.1}),
}


def _width(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _cases():
    distinct = {}
    for name, model in PUBLISHED.items():
        key = json.dumps([model.config.get(field) for field in FIELDS] + [_width(model.config)])
        distinct.setdefault(key, (name, model))
    cases = dict(distinct.values())
    for name, (like, rope) in MORE.items():
        config = PUBLISHED[like].config | {"rope_parameters": None, "rope_scaling": rope, "rope_theta": 500000}
        cases[name] = Published(config, 0)
    return cases


CASES = _cases()


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    """One start of a rank serves every case."""
    folder = tmp_path_factory.mktemp("rope")
    folders = [model.write(folder / name.replace("/", " ")) for name, model in CASES.items()]
    run_ranks(1, compare, folders, LENGTH, folder / "differences.pt")
    return torch.load(folder / "differences.pt")


@pytest.mark.parametrize("name", CASES)
def test_cosine_and_sine_are_those_of_transformers(name, differences):
    found = differences[name.replace("/", " ")]
    assert len(found) >= 3
    # mscale stands for a given attention factor, which it gives back to the last digits only.
    assert max(found.values()) <= (1e-6 if name in MORE else 0.0)
