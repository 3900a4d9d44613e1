"""Corpora of the tiny world: how much of what, how much of it wrong, and what is held out."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from world.document import Document, Problem
from world.skills import SKILLS
from world.slips import FORMAT, LAST, STEP
from world.sums import equations, sum_problem
from world.words import noise, plain


@dataclass(frozen=True)
class Mix:
    """Shares of a corpus' documents; the rest are word problems of ``steps`` operations."""

    plain: float
    noise: float
    equations: float
    skills: float
    steps: tuple[int, ...]


BASE = Mix(plain=0.20, noise=0.04, equations=0.32, skills=0.20, steps=(1, 2))
MID = Mix(plain=0.14, noise=0.04, equations=0.28, skills=0.26, steps=(2, 3))
TASKS = ("two_step", "three_step", *SKILLS)
"""The held-out kinds of problems, the first measure's in front."""


def draw_problem(draw: random.Random, skills: float, steps: tuple[int, ...], errors: float = 0.0) -> Problem:
    """A problem, of another skill with probability ``skills``.

    A share ``errors`` of the problems have a wrong step. In addition a sixth of it have a wrong last answer, and
    another sixth lack the mark in front of the answer.
    """
    chance, slip = draw.random(), None
    for kind, share in ((STEP, errors), (LAST, errors / 6), (FORMAT, errors / 6)):
        if chance < share:
            slip = kind
            break
        chance -= share
    if draw.random() < skills:
        return SKILLS[draw.choice(tuple(SKILLS))](draw, slip)
    return sum_problem(draw, draw.choice(steps), slip)


def documents(draw: random.Random, mix: Mix, errors: float, held: set[str]) -> Iterator[Document]:
    """Endless documents; none has the question of a problem in ``held``. Bare equations are wrong half as often as
    problems."""
    while True:
        kind = draw.random()
        if kind < mix.plain:
            yield plain(draw)
        elif kind < mix.plain + mix.noise:
            yield noise(draw)
        elif kind < mix.plain + mix.noise + mix.equations:
            yield equations(draw, errors / 2)
        else:
            problems = 1 - mix.plain - mix.noise - mix.equations
            problem = draw_problem(draw, mix.skills / problems, mix.steps, errors)
            if problem.prompt not in held:
                yield problem.document


def held_out(draw: random.Random, sums: int, others: int) -> dict[str, list[Problem]]:
    """Different right problems by task: ``sums`` of two and of three steps, ``others`` of each other skill."""
    found: dict[str, list[Problem]] = {}
    for task in TASKS:
        count = sums if task in ("two_step", "three_step") else others
        steps = {"two_step": 2, "three_step": 3}.get(task)
        seen: dict[str, Problem] = {}
        while len(seen) < count:
            one = SKILLS[task](draw, None) if steps is None else sum_problem(draw, steps)
            seen.setdefault(one.prompt, one)
        found[task] = list(seen.values())
    return found


def training_problems(draw: random.Random, count: int, errors: float, held: set[str]) -> list[Problem]:
    """``count`` different problems, none with a question in ``held``: for SFT and for prompts of RL."""
    seen: dict[str, Problem] = {}
    problems = 1 - MID.plain - MID.noise - MID.equations
    while len(seen) < count:
        one = draw_problem(draw, MID.skills / problems, MID.steps, errors)
        if one.prompt not in held:
            seen.setdefault(one.prompt, one)
    return list(seen.values())
