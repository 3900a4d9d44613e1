"""A small sample of the campaign, and that its judge can say no. ``make campaign`` runs the whole."""

import random

import pytest

from tests.campaign.damage import VERBS
from tests.campaign.inputs import COMMANDS, judge, read_cases, run_case
from tests.campaign.world import make_world
from tests.ranks import Run

SAMPLE = random.Random(1).sample([case for case in read_cases() if case.command not in ("compare", "evaluate")], 12)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campaign")
    make_world(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: f"{case.command}: {case.name}")
def test_a_bad_input_gets_one_clear_line_and_leaves_nothing(case, world):
    outcome = run_case(case, world)
    assert outcome.fate == "clear", outcome.words


def test_every_case_can_be_run():
    cases = read_cases()
    assert len(cases) >= 400 and {case.command for case in cases} == set(COMMANDS)
    assert {step[0] for case in cases for step in case.make} <= VERBS.keys()
    assert all(case.names and all(case.names) for case in cases), "each says what its line must name"


@pytest.mark.parametrize(
    ("code", "output", "changed", "fate"),
    [
        (2, "warning\nerror: --lr nan: expected a finite number", [], "clear"),
        (2, "usage: x\npretrain.py: error: argument --lr: invalid float value: 'fast'", [], "clear"),
        (2, "error: a number is bad", [], "unclear"),
        (1, "error: --lr nan: expected a finite number", [], "unclear"),
        (2, "error: --lr nan: one\nerror: --lr nan: two", [], "unclear"),
        (2, " iteration        1/ 3\nerror: --lr nan: expected", [], "unclear"),
        (2, "error: --lr nan: expected a finite number", ["new"], "left behind"),
        (1, "Traceback (most recent call last):\nerror: --lr\nValueError: --lr", [], "traceback"),
        (0, "done", [], "silent"),
        (1, "done", [], "silent"),
    ],
)
def test_the_judge(code, output, changed, fate):
    assert judge(Run(code, output), ["--lr"], changed)[0] == fate
