"""Every objective but plain ReMiT, and the control with permuted weights, in the real training program.

One run takes a step with each of them (tests/planned_objectives.py). The parameters after a step show in all later
figures and in the checkpoint at the end, so equal runs have equal losses and gradients throughout.
"""

import argparse
from functools import partial

import pytest
import torch

from megatron_remit import cpu
from megatron_remit.objectives.remit import Remit
from tests.checkpoints import load_tensors
from tests.conftest import VOCABULARY
from tests.planned_objectives import PLANS
from tests.ranks import pretrain

cpu.install()

STEPS = len(PLANS["all"])
# After the first six, none of which is distillation.
SAVED = 6
LIKE_NTP = len(PLANS["like ntp"])
# Values that a run logs, one per step that has the figure.
FIGURES = {
    "lm loss": 11,
    "reference nll": 8,
    "base nll": 3,
    "delta mean": 7,
    "prift loss": 1,
    "eslm loss": 2,
    "tokenclean loss": 2,
    "contrast loss": 1,
    "rho1 loss": 3,
    "kept share": 7,
    "kept delta mean": 5,
    "kd loss": 1,
    "reference kl": 1,
    "remit loss": 1,
    "weight mean": 3,
    "weight std": 3,
    "effective share": 3,
    "delta negative": 2,
}
# Plain SGD: the steps change the weights by the sum of their gradients times this.
SGD = {"lr": 0.3}
ADAM = {"optimizer": "adam", "lr": 1e-3}
LAYOUTS = {
    "TP2 with sequence parallelism, larger reference microbatch": (
        {"tensor_model_parallel_size": 2, "sequence_parallel": True, "reference_micro_batch_size": 4}
    ),
    "PP2xVPP2": {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 1},
    "CP2": {"context_parallel_size": 2},
    "DP2 with distributed optimizer": ADAM
    | {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
}


def train_plan(material, plan, folder, ranks=1, **overrides):
    """A step with each objective of the plan, and a checkpoint in ``folder``. The policy's start is the base."""
    models = {"reference_load": material.reference, "reference_base_load": material.policy}
    flags = material.flags(
        objective="contrast",
        **models | {"train_iters": STEPS, "save": folder, "save_interval": STEPS} | SGD | overrides,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAN", plan)
        return pretrain(ranks, *flags, module="tests.planned_objectives")


@pytest.fixture(scope="module")
def train(material):
    return partial(train_plan, material)


def final_weights(folder, steps=STEPS):
    """Every tensor of the last checkpoint, whole, without the vocabulary's padding rows."""
    return {name: tensor[:VOCABULARY] for name, tensor in load_tensors(folder / f"iter_{steps:07d}").items()}


def assert_same_weights(folder, expected_folder, steps=STEPS):
    """Equal up to the order of sums, which eleven steps of SGD at 0.3 enlarge: TP2 gave 5e-5 on an AMD EPYC and less
    than 1e-5 on an Intel Xeon."""
    tensors, expected = final_weights(folder, steps), final_weights(expected_folder, steps)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-4, msg=lambda text, n=name: n + text)


@pytest.fixture(scope="module")
def one_rank(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_rank")
    return train("all", folder), folder


@pytest.fixture(scope="module")
def one_rank_adam(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_rank_adam")
    return train("all", folder, save_interval=SAVED, **ADAM), folder


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_equal_those_of_one_rank(layout, train, tmp_path, request):
    overrides = LAYOUTS[layout]
    expected, folder = request.getfixturevalue("one_rank_adam" if "optimizer" in overrides else "one_rank")
    run = train("all", tmp_path, ranks=2, **overrides)
    for name, count in FIGURES.items():
        assert len(run.series(name)) == count, name
        # NLLs are near 6.4 here: 2e-5 is 3e-6 of them, and what their small differences can show after steps of SGD at
        # 0.3. A processor's own order of sums decides how much of it is used: 4e-6 and 1.0e-5 were seen.
        assert run.series(name) == pytest.approx(expected.series(name), rel=2e-5, abs=2e-5), name
    assert_same_weights(tmp_path, folder)


@pytest.mark.slow
def test_bf16_gives_the_figures_of_fp32_to_its_precision(train, one_rank, tmp_path):
    """Megatron's wrapper of 16-bit models upcasts their outputs, also the hidden states that distillation keeps."""
    expected, _ = one_rank
    run = train("all", tmp_path, ranks=2, bf16=True, tensor_model_parallel_size=2, sequence_parallel=True)
    losses = ("lm loss", "prift loss", "contrast loss", "kd loss", "remit loss")
    for name in (*losses, "reference nll", "base nll", "reference kl", "weight mean"):
        # The rounding of each of eleven steps, and the tokens that it has selected otherwise, add up. The divergence of
        # two close models is small, and shows more of it: 4.4 % on an AMD EPYC.
        bound = 8e-2 if name == "reference kl" else 2e-2
        assert run.series(name) == pytest.approx(expected.series(name), rel=bound), name


@pytest.mark.slow
def test_the_figures_are_what_they_say(one_rank):
    run, _ = one_rank
    *shares, by_threshold, _, _, _ = run.series("kept share")
    assert shares == pytest.approx([0.6, 0.6, 0.6], abs=0.03) and 0.1 < by_threshold < 0.9
    assert run.series("kept share")[4:] == pytest.approx([0.6, 0.6, 0.6], abs=0.03)
    assert run.series("weight mean")[0] == pytest.approx(1.0, abs=1e-6) and run.series("weight std")[0] > 0.01
    spreads = zip(run.series("weight mean"), run.series("weight std"), strict=True)
    assert run.series("effective share") == pytest.approx(
        [1 / (1 + (std / mean) ** 2) for mean, std in spreads], rel=1e-5
    )
    assert all(0.05 < share < 0.95 for share in run.series("delta negative"))
    for loss, ntp in zip(run.series("eslm loss"), run.series("lm loss")[1:3], strict=True):
        assert loss > ntp, "the tokens at risk are the hard ones"
    gap = run.series("base nll")[2] - run.series("reference nll")[3]
    assert gap == pytest.approx(run.series("delta mean")[2], rel=1e-4)
    for kept, mean in zip(run.series("kept delta mean"), run.series("delta mean"), strict=False):
        assert kept > mean
    assert run.series("kd loss")[0] == pytest.approx(
        0.3 * run.series("lm loss")[8] + 0.7 * 2.0**2 * run.series("reference kl")[0], rel=1e-6
    )


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(train, one_rank_adam, tmp_path):
    expected, folder = one_rank_adam
    run = train("all", tmp_path, load=folder, ckpt_step=SAVED, finetune=None, **ADAM)
    for name in ("lm loss", "delta mean"):
        assert run.series(name) == expected.series(name)[-len(run.series(name)) :], name
    for name in ("kd loss", "rho1 loss", "remit loss", "grad-norm"):
        assert run.series(name)[-1] == expected.series(name)[-1], name
    assert len(run.series("lm loss")) == STEPS - SAVED
    for name, tensor in final_weights(tmp_path).items():
        assert torch.equal(tensor, final_weights(folder)[name]), name


@pytest.mark.slow
def test_keeping_all_tokens_and_weights_of_one_equal_ntp_bit_for_bit(train, tmp_path):
    """Adam and clipping, so that each step depends on every bit of the gradients before it."""
    exact = {"optimizer": "adam", "lr": 1e-2, "clip_grad": 1.0, "weight_decay": 0.1, "train_iters": LIKE_NTP}
    expected = train("ntp", tmp_path / "ntp", **exact)
    run = train("like ntp", tmp_path / "like", **exact)
    for name in ("lm loss", "grad-norm"):
        assert run.series(name) == expected.series(name)
    losses = [loss for name in ("rho1", "kd", "eslm", "tokenclean", "contrast") for loss in run.series(f"{name} loss")]
    assert losses == expected.series("lm loss")
    assert run.series("kept share") == [1.0] * 7 and run.series("reference kl")[0] > 0
    assert run.series("weight mean") == [1.0] and run.series("delta mean")[-1] != 0
    expected_tensors = final_weights(tmp_path / "ntp", LIKE_NTP)
    for name, tensor in final_weights(tmp_path / "like", LIKE_NTP).items():
        assert torch.equal(tensor, expected_tensors[name]), name


def test_the_control_gives_the_losses_of_the_microbatch_weights_of_other_tokens():
    nll, reference = torch.rand(2, 2, 32, generator=torch.Generator().manual_seed(5)) * 6
    batch = {"loss_mask": torch.ones(2, 32), "reference_nll": reference, "sample": torch.tensor([8, 9])}
    plain, control = (remit(control).loss(batch, nll) for control in ("none", "permute"))
    for name in ("weight mean", "weight square", "clipped low", "clipped high", "lm loss"):
        torch.testing.assert_close(control[2][name], plain[2][name])
    assert abs(control[0] - plain[0]) > 1e-2 * plain[0]


def remit(control):
    """The objective of a run with seed 7."""
    args = argparse.Namespace(
        remit_epsilon=0.2,
        remit_centering="sequence",
        remit_control=control,
        seed=7,
        remit_vocab_size=VOCABULARY,
        cross_entropy_impl="auto",
    )
    return Remit(args, tokenizer=None)
