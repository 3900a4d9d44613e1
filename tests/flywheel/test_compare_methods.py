"""The comparison: what runs when, what is done twice, and what the page says of it."""

import subprocess
import sys
import time

import compare_methods
import pytest
from compare.arms import ARMS, FIRST
from compare.commands import StageFailed
from compare.schedule import Node, Schedule
from compare.stages import rewards, steps_of
from compare.studies import STUDIES, Asked, _serves, together
from compare.worlds import SMOKE
from results.arms import ARMS as NAMED

from megatron_remit.errors import UserError
from tests.ranks import ROOT, environment


def nodes(run_dir, done, *failing):
    """c needs a and b; d needs c."""

    def action(name):
        def do():
            if name in failing:
                raise StageFailed(f"{name} did not work")
            done.append(name)

        return do

    needs = {"a": (), "b": (), "c": ("a", "b"), "d": ("c",)}
    return [Node(name, action(name), need) for name, need in needs.items()]


@pytest.mark.parametrize("jobs", [1, 3])
def test_nodes_run_in_their_order_after_what_they_need(tmp_path, jobs):
    done = []
    assert Schedule(tmp_path, jobs).run(nodes(tmp_path, done)) == []
    assert sorted(done[:2]) == ["a", "b"] and done[2:] == ["c", "d"]


def test_what_is_done_is_not_done_again(tmp_path):
    first, second = [], []
    assert Schedule(tmp_path, 1).run(nodes(tmp_path, first, "c")) == ["c", "d"]
    assert Schedule(tmp_path, 1).run(nodes(tmp_path, second)) == []
    assert (first, second) == (["a", "b"], ["c", "d"])


def test_a_run_of_two_threads_takes_two_jobs(tmp_path):
    alone, running, most = [], [], []

    def action(name):
        def do():
            running.append(name)
            time.sleep(0.02)
            most.append(len(running))
            if name.startswith("wide"):
                alone.append(running == [name])
            running.remove(name)

        return do

    wide = [Node(f"wide{at}", action(f"wide{at}"), threads=2) for at in range(2)]
    narrow = [Node(f"narrow{at}", action(f"narrow{at}")) for at in range(4)]
    assert Schedule(tmp_path, 2).run([narrow[0], *wide, *narrow[1:]]) == []
    assert alone == [True, True] and max(most) == 2
    assert Schedule(tmp_path / "one", 1).run(wide) == [], "one job: nothing else runs, so it may begin"


def test_an_error_that_nobody_foresaw_ends_one_run_and_no_other(tmp_path, capsys):
    ran = []
    nodes_of = [Node("bad", lambda: {}["no such"]), Node("after", ran.clear, ("bad",)), Node("other", ran.clear)]
    assert Schedule(tmp_path, 1).run(nodes_of) == ["bad", "after"]
    assert (tmp_path / "done/other").exists() and not (tmp_path / "done/bad").exists()
    assert "KeyError" in capsys.readouterr().out


def test_two_comparisons_in_one_folder_are_refused(tmp_path):
    first = Schedule(tmp_path, 1)
    with pytest.raises(UserError, match="another comparison works here"):
        Schedule(tmp_path, 1)
    assert first.run([]) == []


def test_a_need_that_nobody_makes_is_named(tmp_path):
    with pytest.raises(UserError, match="needs b, which is neither done nor asked for"):
        Schedule(tmp_path, 1).run([Node("c", lambda: None, ("b",))])


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_makes_what_it_needs_before(study, tmp_path):
    made = set()
    for node in together(Asked(tmp_path, SMOKE), [study]):
        assert set(node.needs) <= made, node.name
        made.add(node.name)


def test_all_arms_run_for_all_bases_and_orders_the_main_ones_first(tmp_path):
    names = [node.name for node in together(Asked(tmp_path, SMOKE), ["methods"]) if node.name.startswith("methods.")]
    assert len(names) == len(ARMS) * 9 == len(set(names))
    assert {name.split(".")[1] for name in names[: len(FIRST) * 9]} == set(FIRST)


def test_two_threads_are_tried_on_every_base_and_order(tmp_path):
    wide = [node for node in together(Asked(tmp_path, SMOKE), ["threads"]) if node.threads == 2]
    cells = {f"threads.{arm}.b{base}.e30.1M.o{o}" for arm in ("ntp", "remit") for base in (1, 2, 3) for o in (1, 2, 3)}
    assert {node.name for node in wide} == cells and len(wide) == 18


@pytest.mark.parametrize(("arm", "needed"), [("ntp", False), ("remit_sft_errors", True)])
def test_a_reference_of_few_arms_is_made_only_for_them(arm, needed, tmp_path):
    names = [node.name for node in together(Asked(tmp_path, SMOKE, (1,), arms=(arm,)), ["methods"])]
    assert ("more_references.b1.e30.1M" in names) == needed and "references.b1.e30.1M" in names


def test_the_effect_of_errors_is_asked_at_the_shares_that_are_named(tmp_path, monkeypatch, capsys):
    command = ["compare_methods.py", "--run-dir", str(tmp_path), "--study", "errors", "--bases", "1", "--list"]
    monkeypatch.setattr(sys, "argv", [*command, "--shares", "0", "0.5"])
    compare_methods.main()
    told = capsys.readouterr().out.split()
    cells = [name.split(".") for name in told if name.startswith("errors.")]
    assert {cell[-3] for cell in cells} == {"e0", "e50"} and {cell[-1] for cell in cells} == {"o1", "o2", "o3"}
    monkeypatch.setattr(sys, "argv", [*command, "--shares", "30"])
    with pytest.raises(SystemExit):
        compare_methods.main()
    assert "expected a share from 0 to 1" in capsys.readouterr().err


def test_the_larger_models_of_the_study_of_sizes_are_those_that_are_named(tmp_path, monkeypatch, capsys):
    command = ["compare_methods.py", "--run-dir", str(tmp_path), "--study", "size", "--orders", "1", "--list"]
    for named, made in (((), {"5M", "20M"}), (("--sizes", "5M"), {"5M"})):
        monkeypatch.setattr(sys, "argv", [*command, *named])
        compare_methods.main()
        told = capsys.readouterr().out.split()
        assert {name.split(".")[-2] for name in told if name.startswith("size.")} == made
        assert {name.split(".")[1] for name in told if name.startswith("base.")} == {"b1"}, "one base each"


@pytest.mark.parametrize("order", [1, 3])
def test_a_run_of_the_methods_is_one_of_the_study_of_errors_in_every_order(order, tmp_path):
    asked = Asked(tmp_path, SMOKE, (1, 2), (1, 2, 3))
    assert _serves(asked, "methods", asked.world(2), "remit_no_clip", order) == ["errors"]


def test_the_script_lists_what_it_would_do(tmp_path):
    ran = environment() | {"COMPARE_SMOKE": "1", "RUN_DIR": str(tmp_path), "PYTHON": sys.executable}
    command = ["bash", "examples/compare_tiny.sh", "--list", "--bases", "1", "--orders", "1", "--arms", "ntp"]
    done = subprocess.run(command, cwd=ROOT, env=ran, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{name}.b1.e30.1M" for name in ("data", "base", "references")] + [
        "methods.ntp.b1.e30.1M.o1"
    ]


def test_rl_is_judged_by_its_first_and_its_last_quarter():
    log = [{"step": 2 * at + 2, "reward": 0.1 * at} for at in range(24)] + [{"step": 48, "train_runtime": 1.0}]
    assert rewards(log) == pytest.approx((0.25, 2.05)) and steps_of(log) == 48
    assert rewards(log[:8]) == pytest.approx((0.2, 0.5)), "five entries at least"
    assert rewards([{"step": 2, "reward": 0.5}]) == (0.5, 0.5), "a run of a few steps"


def test_every_arm_has_a_name_in_the_reports():
    assert set(ARMS) | {"second_ntp", "second_remit"} == set(NAMED)
