"""Document masks and centering by document train the same at every layout, though documents span ranks.

So do packed documents (THD): the corpus ends each document with the end-of-document token, so both ways of finding the
borders find the same.
"""

import pytest

from tests.test_parallel_parity import assert_same, train

DOCUMENTS = {"reset_attention_mask": True, "reset_position_ids": True, "remit_centering": "document"}
PACKED = {"reset_attention_mask": False, "reset_position_ids": False, "dataloader_inter_document_masking": True}
ONE_ROW = PACKED | {"micro_batch_size": 1}
LAYOUTS = {
    "CP2xTP2 with sequence parallelism": (
        4,
        {"context_parallel_size": 2, "tensor_model_parallel_size": 2, "sequence_parallel": True},
    ),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
    "packed: two rows of a microbatch become one sequence": (1, PACKED),
    "packed: a larger microbatch of the reference": (1, {**PACKED, "reference_micro_batch_size": 4}),
    "packed: TP2 with sequence parallelism": (
        2,
        {**PACKED, "tensor_model_parallel_size": 2, "sequence_parallel": True},
    ),
    "packed: PP4, whose middle stages read borders alone": (4, {**ONE_ROW, "pipeline_model_parallel_size": 4}),
    "packed: PP2xVPP2": (
        2,
        {**ONE_ROW, "pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 1},
    ),
    "packed: TP2xPP2": (4, {**ONE_ROW, "tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}),
}


@pytest.fixture(scope="module")
def one_rank(material, tmp_path_factory):
    return train(material, tmp_path_factory.mktemp("documents"), 1, **DOCUMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_equal_those_of_one_rank(layout, material, tmp_path, one_rank):
    ranks, overrides = LAYOUTS[layout]
    assert_same(train(material, tmp_path, ranks, **(DOCUMENTS | overrides)), one_rank)


@pytest.mark.slow
def test_borders_matter_to_the_losses(material, tmp_path, one_rank):
    across = train(material, tmp_path, 1, remit_centering="document")
    assert across[0]["lm loss"][0] != pytest.approx(one_rank[0]["lm loss"][0], rel=1e-4)
