"""Where a wrong number begins, and how solutions that are lists of numbers carry it on."""

import random
import re

import pytest
from world.document import CARRIED, GIVEN, QUESTION, RESULT, SIGN, SLIP
from world.skills import SKILLS
from world.slips import LAST, OFFSETS, STEP, apart
from world.sums import sum_problem

LISTS = ("maximum", "counting", "sorting", "reversing")
PROBLEMS = 300


def numbers_of(skill, prompt):
    """What the question gives, as numbers: 1 for a letter that counts."""
    if skill == "counting":
        return [int(letter == "b") for letter in prompt.split("many b in ")[1].split("?")[0].split()]
    found = re.findall(r"\d" if skill == "reversing" else r"\d+", prompt)
    return [int(number) for number in found]


def number_at(skill, place, given, listed):
    """What stands at ``place`` of a solution that has been right so far, or has gone on from what is wrong."""
    if skill in ("maximum", "counting"):
        step = max if skill == "maximum" else int.__add__
        return step(listed[place - 1], given[place]) if place else given[0]
    return (sorted(given) if skill == "sorting" else given[::-1])[place]


@pytest.mark.parametrize("skill", LISTS)
def test_a_wrong_number_of_a_list_is_carried_on_to_the_end_and_into_the_answer(skill):
    draw = random.Random(1)
    for _ in range(PROBLEMS):
        problem = SKILLS[skill](draw, STEP)
        steps, answer = problem.completion.split(" #### ")
        listed = [int(number) for number in steps.split()]
        given = numbers_of(skill, problem.prompt)
        expected = [number_at(skill, place, given, listed) for place in range(len(given))]
        (off,) = (told - right for told, right in zip(listed, expected, strict=True) if told != right)
        assert off in OFFSETS, "one number is off, the others follow from what stands before them"
        between = {"sorting": " ", "reversing": ""}.get(skill)
        assert answer == (f"{listed[-1]}" if between is None else between.join(map(str, listed)))
        assert skill != "reversing" or max(listed) <= 9, "a digit stays one digit"
        assert (CARRIED == problem.solution[-1].kind) == (answer != problem.answer)


@pytest.mark.parametrize(
    ("right", "wrong", "texts"),
    [(28, 27, [" 2", "7"]), (9, 10, [" ", "10"]), (12, 2, [" ", "2"]), (1, 11, [" 1", "1"]), (11, 1, [" ", "1"])],
)
def test_a_wrong_number_is_wrong_from_its_first_other_digit(right, wrong, texts):
    pieces = apart(right, wrong, RESULT, SLIP, lead=" ")
    assert [(piece.text, piece.kind) for piece in pieces] == list(zip(texts, (RESULT, SLIP), strict=True))


def test_a_blank_of_its_own_is_no_number():
    problem = sum_problem(random.Random(9), 2, LAST)
    text = problem.document.text
    kinds = list(problem.document.kinds(list(text)))[:-1]
    by_character = list(zip(text, kinds, strict=True))
    assert {kind for character, kind in by_character if character == " "} == {QUESTION, SIGN}
    assert {kind for character, kind in by_character[: len(problem.prompt)] if character.isdigit()} == {GIVEN}
