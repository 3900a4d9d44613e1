"""Every parallel layout trains as one rank does: per-step losses, ReMiT's figures and gradients.

Plain SGD with learning rate 1 and no clipping makes the gradients visible in the checkpoint: what three steps change in
the weights is the sum of their gradients. Loss masks are uneven, the vocabulary is padded differently at TP1 and TP2,
and there are several microbatches per step.
"""

import pytest
import torch

from tests.checkpoints import load_tensors
from tests.conftest import VOCABULARY
from tests.ranks import pretrain

FIGURES = ("lm loss", "remit loss", "reference nll", "weight mean", "weight std", "clipped low", "clipped high")

LAYOUTS = {
    "TP2": (2, {"tensor_model_parallel_size": 2}),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
    "PP2xVPP2": (2, {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 1}),
    "TP2 with sequence parallelism": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "CP2": (2, {"context_parallel_size": 2}),
    "CP2xTP2 with sequence parallelism": (
        4,
        {"context_parallel_size": 2, "tensor_model_parallel_size": 2, "sequence_parallel": True},
    ),
    "DP2 with distributed optimizer": (
        2,
        {
            "use_distributed_optimizer": True,
            "overlap_grad_reduce": True,
            "overlap_param_gather": True,
            "optimizer": "adam",
            "lr": 1e-3,
        },
    ),
    "TP2xPP2": (4, {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}),
    "larger reference microbatch": (1, {"reference_micro_batch_size": 4}),
}


def train(material, folder, ranks, **overrides):
    run = pretrain(ranks, *material.remit(save=folder, save_interval=3, no_save_optim=True, **overrides))
    return {name: run.series(name) for name in FIGURES}, weights(folder)


def weights(folder):
    """Every tensor of the checkpoint in ``folder``, whole, without the vocabulary's padding rows."""
    tensors = load_tensors(folder / "iter_0000003")
    return {name: tensor[:VOCABULARY] for name, tensor in tensors.items()}


def assert_same(found, expected):
    """Figures of every step and weights after the last one, both as :func:`train` returns them."""
    for name in FIGURES:
        assert len(found[0][name]) == 3
        assert found[0][name] == pytest.approx(expected[0][name], rel=2e-5, abs=2e-6), name
    assert found[1].keys() == expected[1].keys()
    for name, tensor in found[1].items():
        torch.testing.assert_close(tensor, expected[1][name], rtol=1e-4, atol=5e-6, msg=lambda text, n=name: n + text)


@pytest.fixture(scope="module")
def one_rank(material, tmp_path_factory):
    return train(material, tmp_path_factory.mktemp("one_rank"), 1)


@pytest.fixture(scope="module")
def one_rank_adam(material, tmp_path_factory):
    return train(material, tmp_path_factory.mktemp("one_rank_adam"), 1, optimizer="adam", lr=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_equal_those_of_one_rank(layout, material, tmp_path, request):
    ranks, overrides = LAYOUTS[layout]
    expected = request.getfixturevalue("one_rank_adam" if "optimizer" in overrides else "one_rank")
    assert_same(train(material, tmp_path, ranks, **overrides), expected)


@pytest.mark.slow
def test_the_weights_moved_so_the_comparison_has_something_to_compare(material, one_rank):
    before = load_tensors(material.policy / "release")
    for name, tensor in one_rank[1].items():
        assert not torch.equal(tensor, before[name][:VOCABULARY]), name
