"""One stream of two kinds of documents: text that may be cut, and short documents that may not."""

from bisect import bisect, insort
from collections.abc import Iterator

import numpy as np

from evals.records.errors import UserError


def bounds(tokens: np.ndarray) -> Iterator[tuple[int, int]]:
    """First token, an end of text, and end of each document."""
    start = 0
    for block in range(0, len(tokens), 2**24):
        for stop in (np.flatnonzero(tokens[block : block + 2**24] == 0) + block).tolist():
            if stop:
                yield start, stop
            start = stop
    yield start, len(tokens)


def interleave(text: np.ndarray, documents: list[np.ndarray], align: int) -> Iterator[np.ndarray]:
    """The stream of `text` with `documents` in it, of which none crosses a multiple of `align` tokens.

    They become due at an even pace. One that is due goes between two documents of the text, the longest first that fits
    before the next multiple. A document of the text is cut, at a multiple, only when many wait or the text nears its end.

    Raises:
        UserError: there is too little text for them.
    """
    waiting: list[tuple[int, int]] = []  # length and index, sorted
    position = due = 0
    end = 0.95 * len(text)

    def fitting() -> Iterator[np.ndarray]:
        nonlocal position
        while place := bisect(waiting, (align - position % align, len(documents))):
            length, index = waiting.pop(place - 1)
            position += length
            yield documents[index]

    for start, stop in bounds(text):
        while due < min(len(documents) * stop / end, len(documents)):
            insort(waiting, (len(documents[due]), due))
            due += 1
        yield from fitting()
        patience = 16 * align if stop < end else 0
        while sum(length for length, _ in waiting) > patience and (cut := start + -position % align) < stop:
            position += cut - start
            yield text[start:cut]
            start = cut
            yield from fitting()
        position += stop - start
        yield text[start:stop]
    yield from fitting()
    if due < len(documents) or waiting:
        raise UserError(
            f"{len(text)} tokens of training text are too few to place {sum(map(len, documents))} of memory tasks in: "
            "raise limit_bytes or lower memory_tasks.n_tokens"
        )
