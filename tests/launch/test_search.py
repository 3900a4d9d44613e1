"""The search of layouts: what fits comes first by speed, the rest falls by a reason, and each passes the plan."""

import json
import sys

import pytest

from megatron_remit.errors import UserError
from megatron_remit.launch.gpus import gpu
from megatron_remit.launch.plan_checks import place
from megatron_remit.launch.search import RESERVE, search
from megatron_remit.launch.search_table import describe
from megatron_remit.programs.commands import plan_command
from tests.ranks import ROOT

FLAGS = (
    "--objective remit --seq-length 4096 --global-batch-size 64 --train-iters 10 --lr 1e-4 --bf16 --mock-data "
    "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"
).split()
H100 = gpu("H100-80GB")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Llama-3-70B with 8 layers: 8.9B parameters, which no GPU holds alone."""
    folder = tmp_path_factory.mktemp("model")
    config = json.loads((ROOT / "benchmarks/shapes/llama3_70b/config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 8}))
    return folder


@pytest.fixture(scope="module")
def found(model):
    return {gpus: search(model, model, gpus, FLAGS, H100, 8) for gpus in (4, 8)}


def sizes(candidate):
    layout = candidate.layout
    return layout.tp, layout.pp, layout.virtual, layout.cp, layout.ep


def test_the_fastest_comes_first_and_each_leaves_the_reserve(found):
    speeds = [one.step.speed for one in found[8].fitting]
    assert speeds == sorted(speeds, reverse=True) and speeds[0] > speeds[-1]
    assert all(one.memory <= (1 - RESERVE) * H100.memory for one in found[8].fitting)
    assert all(one.layout.tp * one.layout.pp * one.layout.cp * one.data_parallel == 8 for one in found[8].fitting)


def test_what_falls_has_the_words_of_training_or_its_memory(found):
    reasons = " ".join(found[8].fallen)
    assert "layers do not divide over --pipeline-model-parallel-size" in reasons
    assert "does not fit into H100-80GB" in reasons
    assert (1, 1, 1, 1, 1) not in map(sizes, found[8].fitting)


def test_more_gpus_never_take_a_layout_away(found):
    """The same parallel sizes on more ranks hold less of the optimizer each."""
    assert found[4].fitting
    assert set(map(sizes, found[4].fitting)) <= set(map(sizes, found[8].fitting))


def test_what_is_printed_passes_the_plan_with_its_own_flags(found, model):
    text = describe(found[8], model, model, 8, H100)
    best = found[8].fitting[0]
    run = place(model, model, 8, [*FLAGS, *best.layout.flags()])
    assert run.policy.args.data_parallel_size == best.data_parallel
    assert f"--tensor-model-parallel-size {best.layout.tp}" in text and "plan --simulate" in text
    assert f"{best.step.speed:,.0f}" in text and "fallen, and why" in text


def test_the_runs_own_layout_gives_way(model):
    own = [*FLAGS, "--tensor-model-parallel-size", "3", "--sequence-parallel", "--micro-batch-size", "7"]
    assert search(model, model, 4, own, H100, 8).training == FLAGS


def test_where_nothing_fits_it_says_so(model):
    found = search(model, model, 1, FLAGS, H100, 8)
    assert not found.fitting
    assert "none: take more GPUs" in describe(found, model, model, 1, H100)


def test_what_no_layout_mends_is_an_error(model):
    with pytest.raises(UserError, match="--seq-length is not set"):
        search(model, model, 8, ["--objective", "ntp", "--train-iters", "1"], H100, 8)


def test_the_command_prints_it_and_writes_json(model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "found.json"
    command = ["plan", "--search", "--base-hf", str(model), "--gpus", "4", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", [*command, "--", "--objective", "ntp", *FLAGS[2:]])
    plan_command()
    written = json.loads(out.read_text())
    assert "best" in capsys.readouterr().out
    assert written["fitting"][0]["online_over_ntp"] == 1.0 and written["fitting"][0]["flags"]
    assert all(count > 0 for count in written["fallen"].values())


def test_it_does_not_simulate_too(model, monkeypatch):
    flags = ["plan", "--search", "--simulate", "--base-hf", str(model), "--gpus", "4", "--", *FLAGS]
    monkeypatch.setattr(sys, "argv", flags)
    with pytest.raises(UserError, match="prints the command that simulates"):
        plan_command()
