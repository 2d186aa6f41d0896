"""Counts how long the rows of a file are in the tokens of one model, in pieces side by side."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from luthier.chat.examples import TurnWeights, sequences, weighed
from luthier.chat.renderers.base import Rendered, Renderer, renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.control.datasets.archives import rows_in
from luthier.control.datasets.inspection import piece_bounds
from luthier.control.datasets.lengths import Lengths
from luthier.core.errors import InvalidRequest
from luthier.formats.base import Kind, formats, measure
from luthier.records.reader import Reader, Record
from luthier.records.source import Given, LocalFile, Source

_BATCH = 256  # rows that are encoded together
_BATCH_CHARACTERS = 4 * 1024 * 1024  # fewer of them where they are long

IMAGE_TOKENS: dict[str, int] = {"image_understanding": 1600, "image_generation": 1024}
"""Tokens that an image is billed as."""


def count_file(
    source: Source, form: str, model: Path, *, processes: int = 1, turn_weights: TurnWeights = "honoured"
) -> Iterator[Lengths]:
    """The lengths of the rows of a file without problems, piece by piece, by the tokenizer and the renderer in the model's
    folder.
    """
    lines = 0
    with rows_in(source) as (rows, _):
        for found, spanned in _counted_pieces(rows, form, model, processes, turn_weights):
            yield found.moved(lines)
            lines += spanned


def _counted_pieces(
    source: Source, form: str, model: Path, processes: int, turn_weights: TurnWeights
) -> Iterator[tuple[Lengths, int]]:
    places = list(pairwise(piece_bounds(source)))
    if processes == 1 or len(places) == 1:
        for start, end in places:
            yield count_piece(source, form, model, start, end, turn_weights)
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has a core to itself
    context = multiprocessing.get_context("fork" if isinstance(source, LocalFile | Given) else "spawn")
    ahead: deque[Future[tuple[Lengths, int]]] = deque()
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for place in places:
            ahead.append(pool.submit(count_piece, source, form, model, *place, turn_weights))
            if len(ahead) > processes:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def count_piece(
    source: Source, form: str, model: Path, start: int, end: int, turn_weights: TurnWeights = "honoured"
) -> tuple[Lengths, int]:
    """Lengths of the rows between two places, both at the start of a line, and how many lines that are."""
    plugin, renderer = formats.load(form), renderer_in(model)
    found = Lengths(bills_text=bills_text(plugin.kind))
    reader = Reader(source.blocks(start, end), is_start=start == 0)
    batch: list[Record] = []
    characters = 0
    for record in reader:
        if isinstance(record, Record):
            batch.append(record)
            characters += len(record.text)
            if len(batch) == _BATCH or characters > _BATCH_CHARACTERS:
                _count(batch, plugin, renderer, found, turn_weights)
                batch.clear()
                characters = 0
    _count(batch, plugin, renderer, found, turn_weights)
    return found, reader.lines


def _count(batch: list[Record], plugin: Any, renderer: Renderer, found: Lengths, turn_weights: TurnWeights) -> None:
    values = [weighed(plugin.value(record.value), turn_weights) for record in batch]
    try:
        rows: list[tuple[Rendered, ...] | str] = list(sequences(values, renderer))
    except InvalidRequest:  # one of them is refused: find out which
        rows = [_alone(value, renderer) for value in values]
    for record, value, row in zip(batch, values, rows, strict=True):
        if isinstance(row, str):
            found.refuse(record.line, row)
        else:
            found.take(row, record.line, image_tokens(plugin.kind, measure(value).images))


def _alone(value: Any, renderer: Renderer) -> tuple[Rendered, ...] | str:
    try:
        return sequences([value], renderer)[0]
    except InvalidRequest as refused:
        return refused.message


def billed(row: tuple[Rendered, ...], kind: Kind, images: int) -> int:
    """Tokens of one pass over a row as they are billed: all of its sequences; images by their rule."""
    if not row:
        return 0
    text = sum(len(one.tokens) for one in row) if bills_text(kind) else 0
    return text + image_tokens(kind, images)


def bills_text(kind: Kind) -> bool:
    """Whether the text of a row is billed and learned, beside its image."""
    return kind != "image_generation"


def image_tokens(kind: Kind, images: int) -> int:
    return images * IMAGE_TOKENS.get(kind, 0)


@lru_cache(maxsize=8)
def renderer_in(folder: Path) -> Renderer:
    """The renderer of the model in a folder, which must not change: reading a large tokenizer takes a second."""
    return renderer_for(Tokenizer(folder))
