"""The tiny world: what is right in it, what is wrong, and where."""

import itertools
import json
import random
import re
from collections import Counter

import pytest
from make_world import answer_of, reward
from transformers import AutoTokenizer
from world.corpus import BASE, MID, TASKS, documents, draw_problem, held_out
from world.document import CARRIED, END, FORM, SLIP, SUM, SUM_SLIP, WRONG, WRONG_ANSWER
from world.skills import SKILLS
from world.slips import FORMAT, LAST, OFFSETS, STEP
from world.sums import sum_problem

from tests.ranks import ROOT, run_command

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
EQUATION = re.compile(r"(\d+)([+*-])(\d+)=(\d+)")
PROBLEMS = 300


def solve(skill, prompt):
    """The answer by another way than the generator's."""
    numbers = [int(number) for number in re.findall(r"\d+", prompt)]
    if skill in ("one_step", "two_step", "three_step"):
        total = numbers[0]
        for verb, amount in re.findall(r"(finds|buys|gets|wins|loses|sells|drops|eats) (\d+)", prompt):
            total += int(amount) * (1 if verb in ("finds", "buys", "gets", "wins") else -1)
        return f"{total}"
    return {
        "comparison": lambda: f"{max(numbers)}",
        "maximum": lambda: f"{max(numbers)}",
        "sorting": lambda: " ".join(f"{number}" for number in sorted(numbers)),
        "counting": lambda: f"{prompt.split('many b in ')[1].count('b')}",
        "reversing": lambda: f"{numbers[0]}"[::-1],
        "parity": lambda: "odd" if sum(numbers) % 2 else "even",
        "units": lambda: f"{numbers[0] * {'m': 100, 'cm': 10, 'weeks': 7}[prompt.split()[6]] + numbers[1]}",
        "dates": lambda: DAYS[(DAYS.index(re.search("after (.*)[?]", prompt)[1]) + numbers[0]) % 7],
    }[skill]()


def right(equation):
    left, sign, second, result = int(equation[0]), equation[1], int(equation[2]), int(equation[3])
    return result == {"+": left + second, "-": abs(left - second), "*": left * second}[sign]


def make(draw, skill, slip=None):
    steps = {"one_step": 1, "two_step": 2, "three_step": 3}.get(skill)
    return SKILLS[skill](draw, slip) if steps is None else sum_problem(draw, steps, slip)


@pytest.mark.parametrize("skill", ["one_step", *TASKS])
def test_every_right_problem_has_the_right_answer_and_right_steps(skill):
    draw = random.Random(1)
    for _ in range(PROBLEMS):
        problem = make(draw, skill)
        assert problem.answer == solve(skill, problem.prompt) == answer_of(problem.completion)
        assert all(right(equation) for equation in EQUATION.findall(problem.completion))
        assert not {piece.kind for piece in problem.document.pieces} & {*WRONG, CARRIED}


@pytest.mark.parametrize("skill", TASKS)
def test_a_wrong_step_is_one_result_that_is_off_and_is_carried_on(skill):
    draw = random.Random(2)
    for _ in range(PROBLEMS):
        problem = make(draw, skill, STEP)
        assert problem.answer == solve(skill, problem.prompt), "the reward knows the truth"
        assert [piece.kind for piece in problem.solution].count(SLIP) == 1
        equations = EQUATION.findall(problem.completion)
        if equations:
            (wrong,) = [equation for equation in equations if not right(equation)]
            expected = {"+": int.__add__, "-": lambda a, b: abs(a - b), "*": int.__mul__}[wrong[1]]
            assert int(wrong[3]) - expected(int(wrong[0]), int(wrong[2])) in OFFSETS
            for one, following in itertools.pairwise(equations):
                assert following[0] == one[3], "what follows starts from the result as it stands"


def test_a_slip_of_the_answer_or_of_form_leaves_the_steps_right():
    draw = random.Random(3)
    for _ in range(PROBLEMS):
        wrong, formless = sum_problem(draw, 3, LAST), sum_problem(draw, 3, FORMAT)
        assert all(right(equation) for one in (wrong, formless) for equation in EQUATION.findall(one.completion))
        assert int(answer_of(wrong.completion)) - int(wrong.answer) in OFFSETS
        assert answer_of(formless.completion) is None
        assert WRONG_ANSWER in {piece.kind for piece in wrong.solution} and FORM in {p.kind for p in formless.solution}


def test_the_shares_of_what_is_wrong_are_those_asked_for():
    draw, counts, equations = random.Random(4), Counter(), Counter()
    for _ in range(6000):
        kinds = {piece.kind for piece in draw_problem(draw, 0.2, (2, 3), 0.3).solution}
        counts.update(kind for kind in (SLIP, WRONG_ANSWER, FORM) if kind in kinds)
    assert counts[SLIP] / 6000 == pytest.approx(0.3, abs=0.02)
    assert counts[FORM] / 6000 == pytest.approx(0.05, abs=0.01)
    found = documents(draw, MID, 0.3, set())
    for _ in range(3000):
        equations.update(piece.kind for piece in next(found).pieces)
    assert equations[SUM_SLIP] / equations[SUM] == pytest.approx(0.15, abs=0.02)


def test_a_world_without_errors_has_none():
    draw = random.Random(5)
    for mix in (BASE, MID):
        found = documents(draw, mix, 0.0, set())
        assert not {piece.kind for _ in range(2000) for piece in next(found).pieces} & {*WRONG, CARRIED}


def test_the_kind_of_a_token_is_that_of_the_piece_in_which_it_begins():
    problem = sum_problem(random.Random(6), 2, STEP)
    text = problem.document.text
    # A token for each character, and one that begins with the blank in front of a number.
    by_character = list(problem.document.kinds(list(text)))
    assert by_character[-1] == END and len(by_character) == len(text) + 1
    place = 0
    for piece in problem.document.pieces:
        for character, kind in zip(piece.text, by_character[place : place + len(piece.text)], strict=True):
            assert kind == piece.kind or character.isspace()
        place += len(piece.text)
    slip = next(piece.text for piece in problem.solution if piece.kind == SLIP)
    assert by_character.count(SLIP) == len(slip) > 0


def test_held_out_problems_are_different_and_right():
    for task, problems in held_out(random.Random(7), 50, 20).items():
        assert (
            len({one.prompt for one in problems}) == len(problems) == (50 if task in ("two_step", "three_step") else 20)
        )
        assert all(one.answer == answer_of(one.completion) for one in problems)


def test_the_reward_wants_the_right_answer_at_the_end():
    texts = [" 1+2=3 #### 3", " 1+2=3 #### 4", " 3", " #### 3 #### 3 and", " 4+5=9 #### odd<eos>", " #### 12 31 55\n"]
    assert reward(texts, answer=["3", "3", "3", "3", "odd", "12 31 55"]) == [1, 0, 0, 0, 1, 1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("world"), 1)


def write_data(folder, seed):
    sizes = [f"--{name}-tokens=20000" for name in ("base", "grow", "mid")]
    counts = ["--heldout=40", "--heldout-skill=5", "--sft=50", "--grpo=50", f"--seed={seed}"]
    done = run_command(["python", ROOT / "examples/flywheel/make_world.py", f"--out={folder}", *sizes, *counts])
    assert done.returncode == 0, done.output
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_held_out_questions_are_in_no_training_text(data):
    held = {row["prompt"] for row in lines(data / "heldout.jsonl")}
    assert len(held) == 2 * 40 + 8 * 5
    for corpus in ("base", "grow", "mid", "sft", "sft_errors", "grpo"):
        assert not [row for row in lines(data / f"{corpus}.jsonl") if row["text"].split("\nA:")[0] + "\nA:" in held]


def test_post_training_data_is_right_but_for_the_set_that_has_the_corpus_errors(data):
    wrong = {
        name: sum(answer_of(row["completion"]) != row["answer"] for row in lines(data / f"{name}.jsonl"))
        for name in ("sft", "grpo", "sft_errors")
    }
    assert wrong["sft"] == wrong["grpo"] == 0 and wrong["sft_errors"] > 5


def test_pieces_are_the_documents_of_the_corpus(data):
    texts = ["".join(text for text, _ in pieces) for pieces in lines(data / "pieces.jsonl")]
    assert texts == [row["text"] for row in lines(data / "mid.jsonl")][: len(texts)]


def test_another_seed_is_another_corpus_with_the_same_problems_and_tokenizer(data, tmp_path):
    other, again = write_data(tmp_path / "2", 2), write_data(tmp_path / "1", 1)
    for name in ("heldout.jsonl", "tokenizer/tokenizer.json"):
        assert (other / name).read_bytes() == (data / name).read_bytes()
    for name in ("base.jsonl", "mid.jsonl", "sft.jsonl"):
        assert (other / name).read_bytes() != (data / name).read_bytes() == (again / name).read_bytes()


def test_prompt_tokens_and_completion_tokens_are_the_tokens_of_the_text(data):
    """Otherwise generation would start from a token sequence that pretraining never shows."""
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    assert len(tokenizer) == 512
    for row in lines(data / "heldout.jsonl"):
        whole = tokenizer.encode(row["text"], add_special_tokens=False)
        parts = [tokenizer.encode(row[name], add_special_tokens=False) for name in ("prompt", "completion")]
        assert parts[0] + parts[1] == whole and len(whole) < 127
