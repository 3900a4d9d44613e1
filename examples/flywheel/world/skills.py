"""Short problems of other skills, each with worked steps and an answer that can be checked.

| skill | question | solution |
|---|---|---|
| comparison | Which is more, 47 or 74? | 74-47=27 #### 74 |
| maximum | Largest of 12, 55, 31? | 12, 55, 55 #### 55 |
| sorting | Sort 31, 12, 55. | 12 31 55 #### 12 31 55 |
| counting | How many b in abbab? | 0 1 2 2 3 #### 3 |
| reversing | Reverse 4729. | 9 2 7 4 #### 9274 |
| parity | Is 4+7+9 even or odd? | 4+7=11; 11+9=20 #### even |
| units | How many cm are 3 m and 25 cm? | 3*100=300; 300+25=325 #### 325 |
| dates | Which day is 9 days after Tuesday? | 2+9=11; 11-7=4 #### Thursday |
"""

import operator
import random
from collections.abc import Callable, Sequence

from world.document import CARRIED, GIVEN, QUESTION, RESULT, SLIP, Piece, Problem
from world.slips import STEP, Step, apart, ending, off, work_out
from world.words import DAYS

Parts = Sequence[tuple[str, str]]


def _problem(
    draw: random.Random,
    skill: str,
    question: Parts,
    listed: Sequence[int],
    say: Callable[[Sequence[int]], str],
    slip: str | None,
    follow: Callable[[int, int], int] | None = None,
    top: int | None = None,
) -> Problem:
    """One whose steps are a list of numbers, of which ``say`` makes the answer.

    A slip of a step puts one of them off (not above ``top``). ``follow(before, at)`` is what then stands at ``at``;
    without it the others do not depend on one another.
    """
    shown, wrong_at = [*listed], -1
    if slip == STEP:
        wrong_at = draw.randrange(len(shown))
        shown[wrong_at] = off(draw, shown[wrong_at], top)
        for at in range(wrong_at + 1, len(shown) if follow else 0):
            shown[at] = follow(shown[at - 1], at)
    steps: list[Piece] = []
    for at, (right, told) in enumerate(zip(listed, shown, strict=True)):
        if at == wrong_at:
            steps += apart(right, told, RESULT, SLIP, lead=" ")
        else:
            steps.append(Piece(f" {told}", RESULT if told == right else CARRIED))
    answer, told_answer = say(listed), say(shown)
    return Problem(
        skill,
        tuple(Piece(text, kind) for text, kind in question),
        (*steps, *ending(draw, told_answer, slip, carried=told_answer != answer)),
        answer,
    )


def _last(listed: Sequence[int]) -> str:
    return f"{listed[-1]}"


def _joined(between: str) -> Callable[[Sequence[int]], str]:
    return lambda listed: between.join(map(str, listed))


def comparison(draw: random.Random, slip: str | None) -> Problem:
    left, right = draw.sample(range(2, 100), 2)
    large, small = max(left, right), min(left, right)
    question = (("Q: Which is more,", QUESTION), (f" {left}", GIVEN), (" or", QUESTION), (f" {right}", GIVEN))
    steps, _ = work_out(draw, [Step(large, "-", small, operator.sub)], slip)
    pieces = tuple(Piece(text, kind) for text, kind in (*question, ("?\nA:", QUESTION)))
    return Problem("comparison", pieces, (*steps, *ending(draw, f"{large}", slip)), f"{large}")


def maximum(draw: random.Random, slip: str | None) -> Problem:
    numbers = draw.sample(range(2, 100), 3)
    running = [max(numbers[: at + 1]) for at in range(3)]

    def follow(before: int, at: int) -> int:
        return max(before, numbers[at])

    return _problem(draw, "maximum", _listed("Q: Largest of", numbers, "?\nA:"), running, _last, slip, follow)


def sorting(draw: random.Random, slip: str | None) -> Problem:
    numbers = draw.sample(range(10, 100), 3)
    return _problem(draw, "sorting", _listed("Q: Sort", numbers, ".\nA:"), sorted(numbers), _joined(" "), slip)


def counting(draw: random.Random, slip: str | None) -> Problem:
    letters = "".join(draw.choice("ab") for _ in range(draw.randint(3, 6)))
    counts = [letters[: at + 1].count("b") for at in range(len(letters))]

    def follow(before: int, at: int) -> int:
        return before + (letters[at] == "b")

    spaced = " ".join(letters)
    question = (("Q: How many b in", QUESTION), (f" {spaced}", GIVEN), ("?\nA:", QUESTION))
    return _problem(draw, "counting", question, counts, _last, slip, follow)


def reversing(draw: random.Random, slip: str | None) -> Problem:
    digits = [draw.randint(1, 9) for _ in range(draw.randint(3, 4))]
    question = (("Q: Reverse", QUESTION), (f" {_joined('')(digits)}", GIVEN), (".\nA:", QUESTION))
    # A digit that is off is still one digit.
    return _problem(draw, "reversing", question, digits[::-1], _joined(""), slip, top=9)


def parity(draw: random.Random, slip: str | None) -> Problem:
    first, second, third = (draw.randint(2, 20) for _ in range(3))
    question = (("Q: Is", QUESTION), (f" {first}+{second}+{third}", GIVEN), (" even or odd?\nA:", QUESTION))
    steps, total = work_out(
        draw, [Step(first, "+", second, operator.add), Step(0, "+", third, operator.add, carries=True)], slip
    )
    told, right = _even(total), _even(first + second + third)
    pieces = tuple(Piece(text, kind) for text, kind in question)
    return Problem("parity", pieces, (*steps, *ending(draw, told, slip, carried=told != right)), right)


def _even(number: int) -> str:
    return "odd" if number % 2 else "even"


def units(draw: random.Random, slip: str | None) -> Problem:
    large, unit, factor, small = draw.choice((("m", "cm", 100, 99), ("cm", "mm", 10, 9), ("weeks", "days", 7, 6)))
    whole, part = draw.randint(2, 9), draw.randint(1, small)
    question = (
        (f"Q: How many {unit} are", QUESTION),
        (f" {whole}", GIVEN),
        (f" {large} and", QUESTION),
        (f" {part}", GIVEN),
        (f" {unit}?\nA:", QUESTION),
    )
    steps, total = work_out(
        draw, [Step(whole, "*", factor, operator.mul), Step(0, "+", part, operator.add, carries=True)], slip
    )
    pieces = tuple(Piece(text, kind) for text, kind in question)
    return Problem(
        "units", pieces, (*steps, *ending(draw, f"{total}", slip, carried=slip == STEP)), f"{whole * factor + part}"
    )


def dates(draw: random.Random, slip: str | None) -> Problem:
    day, after = draw.randrange(7), draw.randint(2, 13)
    question = (
        ("Q: Which day is", QUESTION),
        (f" {after}", GIVEN),
        (" days after", QUESTION),
        (f" {DAYS[day]}", GIVEN),
        ("?\nA:", QUESTION),
    )
    # Days count from 1; whole weeks are taken off one by one.
    listed = [Step(day + 1, "+", after, operator.add)]
    for _ in range((day + after) // 7):
        listed.append(Step(0, "-", 7, _week_less, carries=True))
    steps, found = work_out(draw, listed, slip)
    told, right = DAYS[(found - 1) % 7], DAYS[(day + after) % 7]
    pieces = tuple(Piece(text, kind) for text, kind in question)
    return Problem("dates", pieces, (*steps, *ending(draw, told, slip, carried=told != right)), right)


def _week_less(left: int, right: int) -> int:
    return abs(left - right)


def _listed(lead: str, numbers: Sequence[int], close: str) -> Parts:
    parts = [(lead, QUESTION)]
    for index, number in enumerate(numbers):
        parts += [("," if index else "", QUESTION), (f" {number}", GIVEN)]
    return [(text, kind) for text, kind in (*parts, (close, QUESTION)) if text]


SKILLS: dict[str, Callable[[random.Random, str | None], Problem]] = {
    make.__name__: make for make in (comparison, maximum, sorting, counting, reversing, parity, units, dates)
}
