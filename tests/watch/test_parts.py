"""The parts without a run: names of sources, warnings, flags, sums over bins, the choice of tokens."""

import argparse
import csv

import pytest
import torch

from megatron_remit.errors import UserError
from megatron_remit.watch.alarm import Alarm
from megatron_remit.watch.arguments import add_watch_arguments, check_watch
from megatron_remit.watch.output import keep_run_id
from megatron_remit.watch.run import source_names
from megatron_remit.watch.sums import EDGES, StepSums
from megatron_remit.watch.tokens import ExtremeTokens
from tests.ranks import ROOT


@pytest.mark.parametrize(
    ("prefixes", "names"),
    [
        (["/data/web", "/data/math"], ["web", "math"]),
        (["/a/mid", "/b/mid", "code"], ["a/mid", "b/mid", "code"]),
        (["web", "web", "math"], ["web", "web#2", "math"]),
        (["mid", "/x/mid"], ["mid", "x/mid"]),
    ],
)
def test_sources_have_the_shortest_names_that_differ(prefixes, names):
    assert source_names(prefixes) == names


def said(alarm, figures):
    return [" ".join(text.split()[:2]) for text in alarm.warnings(figures)]


def test_equal_weights_are_said_once_until_they_spread_again():
    alarm, equal, spread = Alarm(0.01, 3, True), {"weight std": 0.002}, {"weight std": 0.1}
    assert [said(alarm, equal) for _ in range(5)] == [[], [], ["weight std"], [], []]
    assert said(alarm, spread) == []
    assert [said(alarm, equal) for _ in range(3)] == [[], [], ["weight std"]]


def test_a_policy_that_has_passed_its_reference_is_said():
    figures = [{"delta mean": value} for value in (-0.1, 0.1, -0.1, -0.2)]
    alarm, of_two_references, off = Alarm(0.01, 2, True), Alarm(0.01, 2, False), Alarm(0.01, 0, True)
    assert [said(alarm, one) for one in figures] == [[], [], [], ["delta mean"]]
    assert not any(said(of_two_references, one) or said(off, one) for one in figures)


def parse(*words):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_watch_arguments(parser)
    return parser.parse_args(words)


def test_a_bad_number_is_refused():
    for words in (("--watch-token-interval", "-1"), ("--watch-least-std", "nan"), ("--watch-patience", "x")):
        with pytest.raises(argparse.ArgumentError, match=words[1]):
            parse(*words)
    assert parse("--watch-histogram-interval", "0").watch_histogram_interval == 0


def wandb_flags(**changes):
    given = {"wandb_project": "remit", "wandb_exp_name": "tiny", "wandb_save_dir": "", "save": None}
    return argparse.Namespace(**given | {"rank": 0, "world_size": 1} | changes)


def test_flags_at_which_wandb_would_fail_on_the_last_rank_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--wandb-project remit without --wandb-exp-name"):
        check_watch(wandb_flags(save="there", wandb_exp_name=""))
    with pytest.raises(UserError, match="neither is given"):
        check_watch(wandb_flags())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is not installed"):
        check_watch(wandb_flags(save="there"))


def test_a_file_that_holds_no_run_id_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RESUME", "allow")
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    (tmp_path / "wandb_run_id").write_text("\n")
    with pytest.raises(UserError, match="wandb_run_id: '' is no id"):
        keep_run_id(wandb_flags(save=str(tmp_path)))


def test_bins_are_open_at_the_ends_and_leave_masked_tokens_out():
    low, high, between = EDGES["delta"]
    width = (high - low) / between
    delta_BS = torch.tensor([[low - 50, low, low + 0.5 * width, high - 0.01, high, high + 50, 0.0]])
    mask_BS = torch.tensor([[1, 1, 1, 1, 1, 1, 0]])
    sums = StepSums(0)
    sums.add({"delta": delta_BS}, mask_BS, None, counts=True, binned=True)
    sums.add({"delta": delta_BS}, mask_BS, None, counts=False, binned=True)
    found = sums.finish(None).histograms["delta"]
    assert (found.counts[0], found.counts[1], found.counts[-2], found.counts[-1]) == (1, 2, 1, 2)
    assert sum(found.counts) == 6 and len(found.counts) == between + 2
    assert found.total == pytest.approx((delta_BS * mask_BS).sum().item(), rel=1e-6)
    assert sums.finish(None) is None, "the next step begins empty"


def test_equal_weights_are_ordered_by_delta_and_masked_tokens_never_chosen():
    labels_BS, extremes = torch.arange(24).view(2, 12), ExtremeTokens()
    weight_BS, delta_BS = torch.full((2, 12), 1.2), torch.arange(24).view(2, 12) / 10
    mask_BS = torch.ones(2, 12)
    mask_BS[1, 11] = 0
    figures = {"weight": weight_BS, "delta": delta_BS, "nll": delta_BS}
    extremes.add(labels_BS, mask_BS, figures, torch.tensor([4, 5]), None, None)
    up, down = extremes.finish(True, None, torch.device("cpu"))
    assert up[:, 6].tolist() == [22.0, *range(21, 12, -1)] and down[:, 6].tolist() == [*range(10)]
    assert up[0, 3:5].tolist() == [5.0, 10.0], "its sequence and its place there"


def test_the_measured_cost_is_below_half_a_percent_of_a_step_and_of_a_commit_that_can_be_found():
    with (ROOT / "benchmarks/results/watch_overhead_cpu.csv").open() as file:
        *_, run = rows = list(csv.DictReader(file))
    assert run["way"] == "run" and float(run["share_percent"]) < 0.5
    assert not [row["commit"] for row in rows if "dirty" in row["commit"]]
    assert f"that is {float(run['share_percent']):.2f} % of the step" in (ROOT / "docs/log.md").read_text()
