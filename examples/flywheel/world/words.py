"""The words of the tiny world, its plain sentences and its noise."""

import random
import string

from world.document import NOISE, PLAIN, Document, Piece

NAMES = "Ann Ben Cora Dan Eva Finn Gus Hana Ivo Jill Kai Lena Max Nora Omar Pia Quin Rosa Sam Tess".split()
THINGS = "pens books coins apples cards shells nuts stamps beads keys cups figs".split()
GAINS = ("finds", "buys", "gets", "wins")
LOSSES = ("loses", "sells", "drops", "eats")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SENTENCES = (
    "{a} walks to the {place} with {b}.",
    "The {place} is quiet in the {time}.",
    "{a} likes {thing} more than {b} does.",
    "In the {time}, {a} and {b} talk about {thing}.",
    "There is a box of {thing} at the {place}.",
    "{b} reads near the {place} while {a} sleeps.",
    "Nobody at the {place} sells {thing} in the {time}.",
)
PLACES = "market river garden school harbour station bridge mill park library".split()
TIMES = "morning evening spring winter rain summer".split()


def plain(draw: random.Random) -> Document:
    """Two to four sentences without any arithmetic; nothing in them is wrong."""

    def one() -> str:
        a, b = draw.sample(NAMES, 2)
        return draw.choice(SENTENCES).format(
            a=a, b=b, thing=draw.choice(THINGS), place=draw.choice(PLACES), time=draw.choice(TIMES)
        )

    return Document((Piece(" ".join(one() for _ in range(draw.randint(2, 4))), PLAIN),))


def noise(draw: random.Random) -> Document:
    """Random letters and digits: no model can learn it."""
    length = draw.randint(16, 40)
    return Document(
        (Piece("".join(draw.choice(string.ascii_lowercase + string.digits) for _ in range(length)), NOISE),)
    )
