"""A tokenizer of 400 tokens, and what the tests of the corpus tools ask of a folder."""

import pytest

from tests.hf_models import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder, 400)
    return folder
