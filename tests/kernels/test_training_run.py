"""The training program with each ``--cross-entropy-impl``: the losses are the same."""

import pytest

from tests.ranks import pretrain

FIGURES = ("lm loss", "remit loss", "reference nll", "delta mean", "weight mean", "weight std", "grad-norm")
# Padded to 520 columns, so that Megatron's loss needs the padding masked.
SHORT = {"train_iters": 2, "micro_batch_size": 1, "global_batch_size": 2, "seq_length": 16}


@pytest.fixture(scope="module")
def torch_run(material):
    return pretrain(1, *material.remit(**SHORT))


@pytest.mark.slow
def test_megatrons_own_cross_entropy_gives_the_same_bits(material, torch_run):
    run = pretrain(1, *material.remit(**SHORT, cross_entropy_impl="megatron"))
    for name in FIGURES:
        assert len(run.series(name)) == 2
        assert run.series(name) == torch_run.series(name), name


@pytest.mark.slow
def test_triton_under_its_interpreter_gives_the_losses_of_torch(material, torch_run, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    run = pretrain(1, *material.remit(**SHORT, cross_entropy_impl="triton"))
    assert "cross_entropy_impl .............................. triton" in run.output
    for name in FIGURES:
        assert run.series(name) == pytest.approx(torch_run.series(name), rel=2e-6, abs=1e-6), name


@pytest.mark.slow
def test_with_triton_a_reference_equal_to_the_policy_gives_delta_zero(material, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    flags = material.remit(**SHORT | {"train_iters": 1}, cross_entropy_impl="triton")
    flags[flags.index("--reference-load") + 1] = str(material.policy)
    run = pretrain(1, *flags)
    assert run.series("delta mean") == [0.0] and run.series("weight mean") == [1.0]
