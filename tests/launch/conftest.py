"""The inputs of a plan, made once for the tests of this folder."""

import pytest

from tests.hf_models import make_tokenizer
from tests.launch.planned import Planned


@pytest.fixture(scope="package")
def planned(tmp_path_factory):
    made = Planned(tmp_path_factory.mktemp("plan"))
    make_tokenizer(made.folder / "base", 515)
    for name in ("base", "rl"):
        made.model(name)
    made.corpus("corpus", 61_234_567_890)
    return made
