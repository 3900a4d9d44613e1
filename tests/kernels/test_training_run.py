"""The training program with each ``--cross-entropy-impl``: the losses are the same."""

import pytest

from tests.ranks import pretrain

FIGURES = ("lm loss", "remit loss", "reference nll", "delta mean", "weight mean", "weight std", "grad-norm")


@pytest.fixture(scope="module")
def run(material):
    """Two short steps; the vocabulary is padded to 520 columns. The reference is the policy as it starts."""

    def start(torchrun=False, **overrides):
        flags = material.remit(train_iters=2, micro_batch_size=1, global_batch_size=2, seq_length=16, **overrides)
        flags[flags.index("--reference-load") + 1] = str(material.policy)
        return pretrain(1, *flags, torchrun=torchrun)

    return start


@pytest.fixture(scope="module")
def torch_run(run):
    return run()


@pytest.mark.slow
def test_megatrons_own_cross_entropy_gives_the_same_bits(run, torch_run):
    megatron_run = run(cross_entropy_impl="megatron")
    for name in FIGURES:
        assert len(torch_run.series(name)) == 2
        assert megatron_run.series(name) == torch_run.series(name), name


@pytest.mark.slow
def test_triton_under_its_interpreter_gives_the_losses_of_torch(run, torch_run, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # A process of its own: Triton asks for its interpreter when it is imported.
    triton_run = run(cross_entropy_impl="triton", torchrun=True)
    assert "cross_entropy_impl .............................. triton" in triton_run.output
    for name in FIGURES:
        assert triton_run.series(name) == pytest.approx(torch_run.series(name), rel=2e-6, abs=1e-6), name
    # The reference's chunked head and the policy's whole logits have the same bits.
    assert triton_run.series("delta mean")[0] == 0.0 and triton_run.series("weight std")[0] == 0.0
    assert triton_run.series("weight std")[1] > 0.0
