"""Plain text: pieces of the reference that Python carries for `help()`. Held out are other topics, less what they repeat."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pydoc_data.topics import topics

from benchmarks.data_sets import DataSet

MOST_CHARACTERS = 500  # of a piece, about 120 tokens
LEAST_CHARACTERS = 200


def make(seed: int) -> DataSet:
    draw = random.Random(f"reference/{seed}")  # noqa: S311
    names = sorted(topics)
    draw.shuffle(names)
    cut = len(names) // 5
    known = {text for name in names[cut:] for text in _paragraphs(name)}

    def rows(chosen: Iterable[str], most: int, without: set[str]) -> list[dict]:
        pieces = dict.fromkeys(piece for name in chosen for piece in _pieces(name, without))
        return [{"text": piece} for piece in draw.sample(list(pieces), most)]

    return DataSet("text", rows(names[cut:], 200, set()), rows(names[:cut], 48, known))


def _paragraphs(topic: str) -> list[str]:
    return [text.strip("\n") for text in topics[topic].split("\n\n") if text.strip()]


def _pieces(topic: str, without: set[str]) -> Iterator[str]:
    """Whole paragraphs that follow each other, up to so many characters; what is shorter or longer is left out."""
    piece = ""
    for text in [text for text in _paragraphs(topic) if text not in without]:
        if len(piece) + len(text) + 2 > MOST_CHARACTERS:
            if LEAST_CHARACTERS <= len(piece) <= MOST_CHARACTERS:
                yield piece
            piece = text
        else:
            piece = f"{piece}\n\n{text}" if piece else text
    if LEAST_CHARACTERS <= len(piece) <= MOST_CHARACTERS:
        yield piece
