"""Wrong results: what a corpus of worked problems has, and a reward does not forgive."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from world.document import ANSWER, CARRIED, FORM, OPERAND, RESULT, SIGN, SLIP, WRONG_ANSWER, Piece

OFFSETS = (-10, -2, -1, 1, 2, 10)
"""By how much a result is off."""
STEP, LAST, FORMAT = "step", "answer", "form"


@dataclass(frozen=True)
class Step:
    """``left``, a sign and ``right``, and their result; ``left`` is the result before it where ``carries``."""

    left: int
    sign: str
    right: int
    result: Callable[[int, int], int]
    carries: bool = False


def off(draw: random.Random, value: int, top: int | None = None) -> int:
    """Another number than ``value``, off by 1, 2 or 10; not below 0 and not above ``top``."""
    found = [value + offset for offset in OFFSETS]
    return draw.choice([other for other in found if other >= 0 and (top is None or other <= top)])


def apart(right: int, wrong: int, right_kind: str, wrong_kind: str, lead: str = "") -> list[Piece]:
    """A wrong number in two pieces: the digits that it begins with as the right one does, and the others.

    Where 27 stands for 28, only the 7 is what the truth would not hold.
    """
    told, true = f"{wrong}", f"{right}"
    shared = next(at for at in range(len(told)) if at == len(told) - 1 or told[at : at + 1] != true[at : at + 1])
    before = lead + told[:shared]
    return [*([Piece(before, right_kind)] if before else []), Piece(told[shared:], wrong_kind)]


def work_out(draw: random.Random, steps: Sequence[Step], slip: str | None) -> tuple[list[Piece], int]:
    """The pieces of the steps, ``; `` between them, and the last result.

    With ``slip`` ``STEP`` one result is off, and the steps behind it carry it on.
    """
    wrong_at = draw.randrange(len(steps)) if slip == STEP else -1
    pieces: list[Piece] = []
    value, carried = 0, False
    for index, step in enumerate(steps):
        left = value if step.carries else step.left
        kind = CARRIED if carried and step.carries else OPERAND
        pieces += [Piece(f"{'; ' if index else ' '}", SIGN), Piece(f"{left}", kind)]
        pieces += [Piece(step.sign, SIGN), Piece(f"{step.right}", OPERAND), Piece("=", SIGN)]
        right = value = step.result(left, step.right)
        if index == wrong_at:
            value, carried = off(draw, right), True
            pieces += apart(right, value, RESULT, SLIP)
        else:
            pieces.append(Piece(f"{value}", CARRIED if carried and step.carries else RESULT))
    return pieces, value


def ending(draw: random.Random, answer: str, slip: str | None, carried: bool = False) -> list[Piece]:
    """`` #### `` and the answer; with a slip ``LAST`` a wrong one (of a number), with ``FORMAT`` without the mark."""
    if slip == FORMAT:
        return [Piece(" so", FORM), Piece(f" {answer}", ANSWER)]
    if slip == LAST and answer.isdigit():
        right = int(answer)
        return [Piece(" ####", SIGN), *apart(right, off(draw, right), ANSWER, WRONG_ANSWER, lead=" ")]
    return [Piece(" ####", SIGN), Piece(f" {answer}", CARRIED if carried else ANSWER)]
