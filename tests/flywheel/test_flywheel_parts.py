"""The flywheel's own pieces: problems with right answers, held-out sets that stay held out, the verifiable reward."""

import json
import random
import re

import pytest
import torch
from make_data import equation, problem, reward
from token_kinds import kinds, summarise

from tests.ranks import ROOT, run_command


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flywheel")
    done = run_command(
        [
            "python",
            ROOT / "examples/flywheel/make_data.py",
            "--out",
            folder,
            "--base-tokens",
            20000,
            "--mid-tokens",
            20000,
            "--heldout",
            200,
            "--sft",
            50,
            "--grpo",
            50,
        ]
    )
    assert done.returncode == 0, done.output
    return folder


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_every_worked_solution_is_right(steps):
    draw = random.Random(steps)
    for _ in range(300):
        one = problem(draw, steps)
        equations = re.findall(r"(\d+)([+-])(\d+)=(\d+)", one["completion"])
        assert len(equations) == steps
        for left, sign, right, result in equations:
            value = int(left) + int(right) if sign == "+" else int(left) - int(right)
            assert value == int(result) and 0 <= value <= 99
        assert one["completion"].endswith(f"#### {one['answer']}") and one["answer"] == equations[-1][3]


def test_bare_equations_are_right():
    draw = random.Random(0)
    for _ in range(200):
        for left, sign, right, result in re.findall(r"(\d+)([+-])(\d+)=(\d+)", equation(draw)):
            assert int(left) + (1 if sign == "+" else -1) * int(right) == int(result)


def test_held_out_problems_are_in_no_training_text(data):
    held = {row["text"] for row in rows(data / "heldout.jsonl")}
    assert len(held) == 400
    assert {row["task"] for row in rows(data / "heldout.jsonl")} == {"two_step", "three_step"}
    for name in ("base", "mid"):
        texts = {row["text"] for row in rows(data / f"{name}.jsonl")}
        assert len(texts) > 100 and not texts & held
    for name in ("sft", "grpo"):
        assert not {row["text"] for row in rows(data / f"{name}.jsonl")} & held


def test_prompt_tokens_and_completion_tokens_are_the_tokens_of_the_text(data):
    """Otherwise generation would start from a token sequence that pretraining never shows."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    assert len(tokenizer) == 512
    for row in rows(data / "heldout.jsonl")[:50]:
        whole = tokenizer.encode(row["text"], add_special_tokens=False)
        parts = [tokenizer.encode(row[name], add_special_tokens=False) for name in ("prompt", "completion")]
        assert parts[0] + parts[1] == whole
        assert len(whole) < 127


def test_the_reward_wants_the_right_number_at_the_end():
    completions = [" 1+1=2 #### 2", " 1+1=2 #### 2<eos>", " 1+1=3 #### 3", " #### 2 pens", " 2", " #### 22"]
    assert reward(completions, ["2"] * 6) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_the_same_seed_gives_the_same_data(data, tmp_path):
    done = run_command(
        [
            "python",
            ROOT / "examples/flywheel/make_data.py",
            "--out",
            tmp_path,
            "--base-tokens",
            20000,
            "--mid-tokens",
            20000,
            "--heldout",
            200,
            "--sft",
            50,
            "--grpo",
            50,
        ]
    )
    assert done.returncode == 0
    for name in ("base", "mid", "heldout", "grpo"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (data / f"{name}.jsonl").read_bytes()


def test_each_token_of_a_problem_has_its_kind():
    pieces = [
        "Q:",
        " Ben",
        " has",
        " ",
        "1",
        "8",
        " pens",
        ".",
        "\n",
        "A",
        ":",
        " ",
        "1",
        "8",
        "+",
        "9",
        "=",
        "2",
        "7",
        " ####",
        " ",
        "2",
        "7",
    ]
    found = list(zip(pieces, kinds("".join(pieces), pieces), strict=True))
    digits = [(piece, kind) for piece, kind in found if piece.isdigit()]
    assert digits == [
        ("1", "question: numbers"),
        ("8", "question: numbers"),
        ("1", "solution: operands"),
        ("8", "solution: operands"),
        ("9", "solution: operands"),
        ("2", "solution: results"),
        ("7", "solution: results"),
        ("2", "solution: answer"),
        ("7", "solution: answer"),
    ]
    assert dict(found)[" pens"] == "question: words" and dict(found)["="] == "solution: signs"
    assert set(kinds("18+9=27", list("18+9=27"))) == {"bare equations"}
    assert set(kinds("Ben likes figs.", ["Ben", " likes", " figs."])) == {"filler"}


def test_weights_and_choice_are_those_of_the_objectives_for_each_kind():
    policy_BS, reference_BS = torch.tensor([[3.0, 1.0, 1.0, 1.0, 1.0]]), torch.tensor([[1.0, 1.0, 1.0, 1.0, 2.0]])
    hard, plain, lost = summarise("base", policy_BS, reference_BS, [["a", "b", "b", "b", "c"]], ratio=0.8, epsilon=0.2)
    assert [one["delta"] for one in (hard, plain, lost)] == [2.0, 0.0, -1.0]
    assert [one["kept"] for one in (hard, plain, lost)] == [1.0, 1.0, 0.0]
    # The mean delta is 0.2: 2 * sigmoid(-0.2) = 0.9003, the other two are clipped.
    assert [one["weight"] for one in (hard, plain, lost)] == pytest.approx([1.2, 0.9003, 0.8], abs=1e-4)
