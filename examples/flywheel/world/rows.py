"""Rows of whole documents.

Megatron lays documents end to end and cuts rows out of them. A solution whose question stands in the row before cannot
be predicted: in rows of 128 tokens that was a third of the solutions' tokens, at 1.0 nats a token where whole ones cost
a base 0.1 to 0.2. Where each document of the corpus is as long as a row, no cut falls into one.
"""

from collections.abc import Callable, Iterator

from world.document import END, PAD, Document, Piece

WAITING = 64
"""Documents among which the next one of a row is chosen."""


def whole_rows(
    found: Iterator[Document], count: Callable[[str], int], length: int, end: str, pad: str
) -> Iterator[Document]:
    """Endless documents of ``length`` tokens, each several of ``found`` with ``end`` behind each, filled up with
    ``pad``, which no loss counts.

    The one that has waited longest begins a row, and then the longest that still fits is next, so that little is filled
    up. Documents longer than a row are left out.
    """
    waiting: list[tuple[int, Document]] = []
    while True:
        left, pieces = length, list[Piece]()
        while True:
            while len(waiting) < WAITING:
                document = next(found)
                size = count(document.text) + 1
                if size <= length:
                    waiting.append((size, document))
            fitting = [at for at, (size, _) in enumerate(waiting) if size <= left]
            if not fitting:
                break
            size, document = waiting.pop(max(fitting, key=lambda at: waiting[at][0]) if pieces else 0)
            left -= size
            pieces += [*document.pieces, Piece(end, END)]
        yield Document((*pieces, Piece(pad * left, PAD)) if left else tuple(pieces))
