"""Word problems of additions and subtractions, and bare equations.

    Q: Ben has 18 pens. Ben finds 9. Ben loses 26. How many pens?
    A: 18+9=27; 27-26=1 #### 1

Given numbers are 2 to 20, every right result is 0 to 99.
"""

import operator
import random

from world.document import GIVEN, QUESTION, SIGN, SUM, SUM_RESULT, SUM_SLIP, Document, Piece, Problem
from world.slips import STEP, Step, apart, ending, off, work_out
from world.words import GAINS, LOSSES, NAMES, THINGS

SKILLS = {1: "one_step", 2: "two_step", 3: "three_step"}


def sum_problem(draw: random.Random, steps: int, slip: str | None = None) -> Problem:
    """A problem of ``steps`` operations; ``slip`` says what is wrong with its solution."""
    name, thing, value = draw.choice(NAMES), draw.choice(THINGS), draw.randint(2, 20)
    question = [Piece(f"Q: {name} has", QUESTION), Piece(f" {value}", GIVEN), Piece(f" {thing}.", QUESTION)]
    listed: list[Step] = []
    start = value
    for index in range(steps):
        amount = draw.randint(2, 20)
        gain = value - amount < 0 or (value + amount <= 99 and draw.random() < 0.5)
        verb = draw.choice(GAINS if gain else LOSSES)
        question += [Piece(f" {name} {verb}", QUESTION), Piece(f" {amount}", GIVEN), Piece(".", QUESTION)]
        listed.append(Step(start, "+" if gain else "-", amount, operator.add if gain else _minus, carries=index > 0))
        value = value + amount if gain else value - amount
    question.append(Piece(f" How many {thing}?\nA:", QUESTION))
    pieces, found = work_out(draw, listed, slip)
    solution = [*pieces, *ending(draw, f"{found}", slip, carried=slip == STEP)]
    return Problem(SKILLS[steps], tuple(question), tuple(solution), f"{value}")


def _minus(left: int, right: int) -> int:
    """A wrong number carried on may be too small to take from."""
    return abs(left - right)


def equations(draw: random.Random, wrong: float) -> Document:
    """Two to six bare equations on one line, such as ``18+9=27; 40-6=34``, each wrong with probability ``wrong``."""
    pieces: list[Piece] = []
    for index in range(draw.randint(2, 6)):
        left, right = draw.randint(0, 99), draw.randint(2, 20)
        plus = left - right < 0 or (left + right <= 99 and draw.random() < 0.5)
        value = left + right if plus else left - right
        if index:
            pieces.append(Piece("; ", SIGN))
        pieces.append(Piece(f"{left}{'+' if plus else '-'}{right}=", SUM))
        if draw.random() < wrong:
            pieces += apart(value, off(draw, value), SUM_RESULT, SUM_SLIP)
        else:
            pieces.append(Piece(f"{value}", SUM_RESULT))
    return Document(tuple(pieces))
