"""Document masks and centering by document train the same at every layout, though documents span ranks."""

import pytest

from tests.test_parallel_parity import assert_same, train

DOCUMENTS = {"reset_attention_mask": True, "reset_position_ids": True, "remit_centering": "document"}
LAYOUTS = {
    "CP2xTP2 with sequence parallelism": (
        4,
        {"context_parallel_size": 2, "tensor_model_parallel_size": 2, "sequence_parallel": True},
    ),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
}


@pytest.fixture(scope="module")
def one_rank(material, tmp_path_factory):
    return train(material, tmp_path_factory.mktemp("documents"), 1, **DOCUMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_equal_those_of_one_rank(layout, material, tmp_path, one_rank):
    ranks, overrides = LAYOUTS[layout]
    assert_same(train(material, tmp_path, ranks, **DOCUMENTS, **overrides), one_rank)
