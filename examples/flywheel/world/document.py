"""A document as pieces of text, each with its kind: a question, a step, its result, and whether that is right.

A token's kind is that of the piece in which it begins, so that what a method does to each kind can be held against the
truth. A token that is only the blank in front of a number is none of the number.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# What a model can know, roughly: words can be learned, numbers of a question cannot, results can.
QUESTION, GIVEN = "question: words", "question: numbers"
OPERAND, SIGN, RESULT = "solution: operands", "solution: signs", "solution: results"
SLIP, CARRIED = "solution: slips", "solution: carried on"
ANSWER, WRONG_ANSWER, FORM = "answer", "answer: wrong", "solution: slips of form"
SUM, SUM_RESULT, SUM_SLIP = "equations", "equations: results", "equations: slips"
PLAIN, NOISE, END, PAD = "plain sentences", "noise", "end of document", "padding"
WRONG = (SLIP, WRONG_ANSWER, FORM, SUM_SLIP)
"""Kinds of tokens that the truth would not hold."""
NUMBERS = (RESULT, SLIP, CARRIED, ANSWER, WRONG_ANSWER)
"""Kinds of a solution whose blanks in front are signs, being the same whatever the number."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text of one kind."""

    text: str
    kind: str


@dataclass(frozen=True)
class Document:
    """A text of a corpus, in pieces."""

    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(piece.text for piece in self.pieces)

    def kinds(self, tokens: Iterable[str]) -> Iterator[str]:
        """The kind of each of ``tokens``, whose texts together are the document's, and that of the end behind them."""
        ends, place, at = self._ends(), 0, 0
        for token in tokens:
            # A blank in front belongs to a token, not to what stands before it.
            start = place + (len(token) - len(token.lstrip()) if token.strip() else 0)
            while at < len(ends) - 1 and start >= ends[at]:
                at += 1
            kind = self.pieces[at].kind
            if not token.strip():
                kind = QUESTION if kind == GIVEN else SIGN if kind in NUMBERS else kind
            yield kind
            place += len(token)
        yield END

    def _ends(self) -> list[int]:
        found, place = [], 0
        for piece in self.pieces:
            place += len(piece.text)
            found.append(place)
        return found


@dataclass(frozen=True)
class Problem:
    """A problem with a worked solution. ``skill`` is the kind of problem that it is."""

    skill: str
    question: tuple[Piece, ...]
    """Up to and with ``A:``."""
    solution: tuple[Piece, ...]
    answer: str
    """What stands behind ``####`` in a right solution."""

    @property
    def prompt(self) -> str:
        """The question."""
        return "".join(piece.text for piece in self.question)

    @property
    def completion(self) -> str:
        """The solution."""
        return "".join(piece.text for piece in self.solution)

    @property
    def document(self) -> Document:
        """Both."""
        return Document((*self.question, *self.solution))

    def row(self) -> dict[str, str]:
        """As the data files of the stages hold it."""
        return {
            "prompt": self.prompt,
            "completion": self.completion,
            "answer": self.answer,
            "text": self.prompt + self.completion,
            "task": self.skill,
        }
