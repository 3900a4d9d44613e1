"""Over a split vocabulary the NLL and its gradient are those of one rank, and so are those of the chunked head."""

import pytest
import torch

from tests.kernels.tp_ranks import SHAPES, compare
from tests.ranks import run_ranks

KERNEL_CASES = [
    f"TP{size}, {name}" for size in (2, 4) for name in (*SHAPES, "a shard of -inf", "head", "head, sequence parallel")
]
MODEL_CASES = [
    f"GPTModel, {name}" for name in ("untied", "tied", "untied, sequence parallel", "tied, sequence parallel")
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensor_parallel")
    run_ranks(4, compare, folder)
    return [torch.load(folder / f"found{rank}.pt") for rank in range(4)]


@pytest.mark.parametrize("case", KERNEL_CASES)
def test_losses_and_gradients_equal_those_of_one_rank(case, reports):
    for report in reports:
        for name, value in report[case].items():
            assert value <= (1e-5 if "float64" in name else 2e-6 if name == "nll" else 1e-6), (name, value)


@pytest.mark.parametrize("case", MODEL_CASES)
def test_the_model_gives_the_same_nll_frozen_trained_and_by_megatron(case, reports):
    """Hidden states are split under sequence parallelism, and the weight is the embedding's where the two are tied."""
    for report in reports:
        found = report[case]
        assert found["shape"] == found["head not used"] == found["evaluation and training"] == 0.0
        assert found["reference and policy"] == found["small chunks"] == 0.0
        assert found["nll"] <= 2e-6 and found["gradient"] <= 1e-5


def test_no_case_is_left_out(reports):
    assert set(reports[0]) == {*KERNEL_CASES, *MODEL_CASES}
