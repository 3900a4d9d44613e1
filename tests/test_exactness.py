"""Equalities that hold bit for bit, on the real program with one rank."""

import re

import pytest
import torch

from tests.checkpoints import load_tensors
from tests.ranks import pretrain

# No padding rows, so that Megatron's own loss sees the same logits; Adam, so that the optimizer's state matters.
ADAM = {"optimizer": "adam", "lr": 1e-2, "clip_grad": 1.0, "weight_decay": 0.1, "make_vocab_size_divisible_by": 1}


def final_weights(folder, iteration=3):
    return load_tensors(folder / f"iter_{iteration:07d}")


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture(scope="module")
def megatron_run(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("megatron")
    flags = material.flags(save=folder, save_interval=3, **ADAM)
    return pretrain(1, *flags, module="tests.megatron_ntp", torchrun=True), final_weights(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        {"objective": "ntp"},
        {"objective": "remit", "remit_epsilon": 0},
    ],
)
def test_weights_of_one_reproduce_megatrons_own_run(objective, material, megatron_run, tmp_path):
    reference = {} if objective["objective"] == "ntp" else {"reference_load": material.reference}
    run = pretrain(1, *material.flags(save=tmp_path, save_interval=3, **ADAM, **objective, **reference))
    assert len(run.series("lm loss")) == 3
    assert run.series("lm loss") == megatron_run[0].series("lm loss")
    assert_same_bits(final_weights(tmp_path), megatron_run[1])


@pytest.mark.slow
def test_a_reference_equal_to_the_policy_gives_delta_zero_and_weight_one_at_step_one(material):
    flags = material.remit(train_iters=2)
    flags[flags.index("--reference-load") + 1] = str(material.policy)
    run = pretrain(1, *flags)
    equal = {"delta mean": 0.0, "delta negative": 0.0, "weight mean": 1.0, "weight std": 0.0, "effective share": 1.0}
    for name, expected in (equal | {"clipped low": 0.0}).items():
        assert run.series(name)[0] == expected
    assert run.series("reference nll")[0] == run.series("lm loss")[0] == run.series("remit loss")[0]
    assert run.series("weight std")[1] > 0, "after an update the policy differs from its frozen copy"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [{}, {"use_distributed_optimizer": True, "bf16": True}])
def test_a_resumed_run_equals_the_uninterrupted_one(optimizer, material, tmp_path):
    """Adam and a cosine schedule, evaluation between the steps; the resumed run starts from step 2's checkpoint."""
    common = {
        **ADAM,
        **optimizer,
        "lr_decay_style": "cosine",
        "min_lr": 1e-7,
        "train_iters": 4,
        "save_interval": 2,
        "split": "80,20,0",
        "eval_interval": 2,
        "eval_iters": 1,
    }
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    first = pretrain(1, *material.remit(**common, save=whole))
    second = pretrain(1, *material.remit(**common | {"load": whole, "finetune": None, "ckpt_step": 2, "save": resumed}))
    names = ("lm loss", "remit loss", "weight mean", "weight std", "learning-rate", "grad-norm")
    for name in names:
        assert len(first.series(name)) == 4
        assert second.series(name) == first.series(name)[2:], name
    assert "validation loss at iteration" in first.output
    assert_same_bits(final_weights(resumed, 4), final_weights(whole, 4))


@pytest.mark.slow
def test_the_validation_loss_is_that_of_ntp_whatever_the_objective(material):
    """At learning rate 0 all runs validate the same weights; the losses that they train on differ."""
    common = {"lr": 0.0, "train_iters": 1, "split": "80,20,0", "eval_interval": 1, "eval_iters": 2}
    lines = {}
    for objective in ({}, {"objective": "remit"}, {"objective": "rho1", "rho1_keep_ratio": 0.5}, {"objective": "kd"}):
        reference = {"reference_load": material.reference} if objective else {}
        run = pretrain(1, *material.flags(**common, **objective, **reference))
        lines[objective.get("objective", "ntp")] = re.findall(r"validation loss at iteration 1 .*", run.output)
    # Between the steps and after the last one, on other sequences.
    assert len(set(lines["ntp"])) == 2 and all("lm loss value: 6.4" in line for line in lines["ntp"])
    assert lines["remit"] == lines["rho1"] == lines["kd"] == lines["ntp"]


@pytest.mark.slow
def test_the_rerun_state_machine_scores_a_repeated_step_again(material):
    """Megatron's error injector has it repeat step 1 to see whether a suspect loss comes out again: the reference
    scores the replayed microbatches too, so the repeated loss has the same digits. (It then exits, as designed.)"""
    run = pretrain(1, *material.remit(error_injection_rate=1, error_injection_type="transient_error"), check=False)
    repeated = re.search(r"First rerun: .* \(([\d.]+) != ([\d.]+)\)", run.output)
    assert repeated, run.failure()
    assert repeated[1] == repeated[2]
