"""A tiny model, tiny copies of every data set, and the environment of a node without a network."""

import pytest

from tests.evaluation.formats import write_formats
from tests.hf_models import make_olmo2


@pytest.fixture(scope="session")
def formats(tmp_path_factory):
    return write_formats(tmp_path_factory.mktemp("data_sets") / "data")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """An OLMo-2 of two layers that reads as long a prompt as BBH's."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    make_olmo2(folder, num_hidden_layers=2, max_position_embeddings=16384)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory, tmp_path):
    """No network, caches of their own, and a stand-in for nltk's data, which no check of the tiny IFEval reads."""
    import datasets
    import huggingface_hub

    # Both read the environment when they are imported, which they have been.
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")
    nltk = pytest.importorskip("nltk")
    (tmp_path / "nltk/tokenizers/punkt_tab").mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
