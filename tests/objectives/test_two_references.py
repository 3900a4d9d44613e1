"""Token cleaning and contrast: what they make of the NLLs of a reference and its base."""

import argparse
import math

import pytest
import torch

from megatron_remit import cpu
from megatron_remit.objectives.base import Step
from megatron_remit.objectives.contrast import Contrast
from megatron_remit.objectives.remit import Remit
from megatron_remit.objectives.tokenclean import TokenCleaning

cpu.install()


def arguments(**changes):
    values = {
        "remit_epsilon": 0.2,
        "remit_centering": "sequence",
        "remit_control": "none",
        "seed": 7,
        "remit_vocab_size": 515,
        "cross_entropy_impl": "auto",
        "tokenclean_keep_ratio": None,
        "tokenclean_threshold": None,
    }
    return argparse.Namespace(**values | changes)


def batch(base, reference, mask):
    columns = {"base_nll": base, "reference_nll": reference, "loss_mask": mask}
    return {name: torch.tensor([values]) for name, values in columns.items()}


def value(report, name):
    total, tokens = report[name].tolist()
    return total / tokens


def test_token_cleaning_trains_on_the_share_with_the_highest_gap_of_the_global_batch(one_rank_groups):
    objective = TokenCleaning(arguments(tokenclean_keep_ratio=0.5), None)
    # Gaps 2, -1, (masked 9), 1 and 3, 0, 0.5, -2: the best half of seven tokens, four by round-half-to-even of 3.5.
    first = batch([5.0, 1.0, 9.0, 2.0], [3.0, 2.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0])
    second = batch([4.0, 1.0, 1.5, 1.0], [1.0, 1.0, 1.0, 3.0], [1.0] * 4)
    objective.look_ahead(Step([[first, second]], [], lambda: pytest.fail("the policy is not needed")))
    assert first["selected"].tolist() == [[True, False, False, True]]
    assert second["selected"].tolist() == [[True, False, True, False]]
    loss, tokens, report = objective.loss(first, torch.tensor([[10.0, 20.0, 30.0, 40.0]]))
    assert (loss.item(), tokens.item()) == (50.0, 2)
    assert value(report, "lm loss") == pytest.approx(70 / 3) and value(report, "tokenclean loss") == 25.0
    assert value(report, "kept share") == pytest.approx(2 / 3)
    assert value(report, "delta mean") == pytest.approx(2 / 3) and value(report, "kept delta mean") == 1.5
    assert value(report, "base nll") == pytest.approx(8 / 3) and value(report, "reference nll") == 2.0


def test_a_threshold_needs_no_other_token():
    objective = TokenCleaning(arguments(tokenclean_threshold=1.0), None)
    one = batch([5.0, 1.0, 9.0, 2.0], [3.0, 2.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0])
    objective.look_ahead(Step([[one]], [], list))
    loss, tokens, _ = objective.loss(one, torch.tensor([[10.0, 20.0, 30.0, 40.0]]))
    assert (loss.item(), tokens.item()) == (50.0, 2), "gaps 2 and 1 reach it, -1 does not, the masked 9 does not count"


def test_a_step_in_which_no_token_reaches_the_threshold_reports_zeros():
    objective = TokenCleaning(arguments(tokenclean_threshold=100.0), None)
    one = batch([5.0, 1.0], [3.0, 2.0], [1.0, 1.0])
    nll = torch.tensor([[10.0, 20.0]], requires_grad=True)
    loss, tokens, report = objective.loss(one, nll)
    loss.backward()
    assert (loss.item(), tokens.item()) == (0.0, 0) and nll.grad.tolist() == [[0.0, 0.0]]
    means = {name: pair[0] / pair[1] for name, pair in report.items()}  # as Megatron divides
    objective.finish_report(means)
    assert means["tokenclean loss"] == 0 and means["kept delta mean"] == 0 and means["kept share"] == 0
    assert means["lm loss"] == 15 and means["delta mean"] == 0.5


def test_contrast_hand_computed():
    # Gaps 1.0, -0.5, 0.1 (the masked 50 is left out), mean 0.2: weights 1.2 (clipped), 0.8 (clipped), 0.950042.
    one = batch([3.0, 1.0, 2.1, 50.0], [2.0, 1.5, 2.0, 0.0], [1.0, 1.0, 1.0, 0.0])
    nll = torch.tensor([[10.0, 20.0, 30.0, 40.0]], requires_grad=True)
    loss, tokens, report = Contrast(arguments(), None).loss(one, nll)
    third = 2 / (1 + math.exp(0.1))
    assert loss.item() == pytest.approx(1.2 * 10 + 0.8 * 20 + third * 30) and tokens.item() == 3
    assert value(report, "contrast loss") == pytest.approx(loss.item() / 3)
    assert value(report, "delta mean") == pytest.approx(0.2) and value(report, "base nll") == pytest.approx(6.1 / 3)
    loss.backward()
    torch.testing.assert_close(nll.grad, torch.tensor([[1.2, 0.8, third, 0.0]]))


@pytest.mark.parametrize("changes", [{}, {"remit_epsilon": None}, {"remit_centering": "none"}])
def test_contrast_is_remit_where_the_policy_is_the_base(changes):
    """Bit for bit: at the first step of a run that starts from the base, the two are the same objective."""
    generator = torch.Generator().manual_seed(1)
    nll, reference = torch.rand(2, 3, 40, generator=generator) * 8
    mask = (torch.rand(3, 40, generator=generator) > 0.2).float()
    one = {"base_nll": nll.clone(), "reference_nll": reference, "loss_mask": mask}
    found = Contrast(arguments(**changes), None).loss(one, nll)
    expected = Remit(arguments(**changes), None).loss(one, nll)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[2]["contrast loss"], expected[2]["remit loss"])


def test_contrast_does_not_depend_on_the_policy():
    one = batch([3.0, 1.0, 2.1], [2.0, 1.5, 2.0], [1.0, 1.0, 1.0])
    objective = Contrast(arguments(), None)
    reports = [objective.loss(one, torch.tensor([nll]))[2] for nll in ([1.0, 1.0, 1.0], [9.0, 0.1, 4.0])]
    for name in ("weight mean", "weight square", "delta mean"):
        assert torch.equal(reports[0][name], reports[1][name])


@pytest.fixture
def one_rank_groups(monkeypatch):
    """The process groups of a run with one rank, which needs none."""
    from megatron.core import mpu

    monkeypatch.setattr(mpu, "get_data_parallel_group", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(mpu, "get_context_parallel_group", lambda *_args, **_kwargs: None)
