"""How long the rows of a file are in the tokens of one model, and which of them a limit leaves out."""

from __future__ import annotations

import multiprocessing
import os
import struct
import sys
from array import array
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from luthier.chat.examples import Overlength, sequences
from luthier.chat.renderers.base import Rendered, Renderer, renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.control.datasets.archives import rows_in
from luthier.control.datasets.inspection import piece_bounds
from luthier.core.errors import InvalidRequest
from luthier.formats.base import Kind, formats, measure
from luthier.records.reader import Reader, Record
from luthier.records.source import Given, LocalFile, Source

_BATCH = 256  # rows that are encoded together
_BARS = 20
_LISTED = 1000

IMAGE_TOKENS: dict[str, int] = {"image_understanding": 1600, "image_generation": 1024}
"""Tokens that an image is billed as."""


_INTS = ("longest", "other", "beside", "counts", "begins", "ends")
_HEAD = struct.Struct("<QQ?")  # rows, spans, whether the text is billed


@dataclass
class Lengths:
    """Tokens of every row in the order of the file; `refused` are rows that the model cannot write, with the reason.

    A limit is held against `longest`; `other` is the shorter of two sequences, 0 where there is one. `beside` are tokens
    that images are billed as. A refused row has 0 everywhere.
    """

    longest: array[int] = field(default_factory=lambda: array("I"))
    other: array[int] = field(default_factory=lambda: array("I"))
    beside: array[int] = field(default_factory=lambda: array("I"))
    counts: array[int] = field(default_factory=lambda: array("I"))
    """Spans of each row: runs of tokens that are learned, of each sequence at least one (an empty one where nothing is)."""
    begins: array[int] = field(default_factory=lambda: array("I"))
    ends: array[int] = field(default_factory=lambda: array("I"))
    """Where the spans of all rows begin and end, within their sequence; the first of a sequence is marked by `firsts`."""
    firsts: array[int] = field(default_factory=lambda: array("B"))
    lines: array[int] = field(default_factory=lambda: array("Q"))
    bills_text: bool = True
    """False where a row is billed by its image alone, which is then also what is learned of it."""
    refused: list[tuple[int, str]] = field(default_factory=list)
    refused_rows: int = 0

    @property
    def rows(self) -> int:
        return len(self.longest)

    @property
    def tokens(self) -> int:
        """Of all rows, as they are billed."""
        text = sum(self.longest) + sum(self.other) if self.bills_text else 0
        return text + sum(self.beside)

    def take(self, row: tuple[Rendered, ...], line: int, beside: int) -> None:
        """Add a row by its sequences; none for one that is refused."""
        sizes = sorted((len(one.tokens) for one in row), reverse=True)
        self.longest.append(sizes[0] if sizes else 0)
        self.other.append(sizes[1] if len(sizes) > 1 else 0)
        self.beside.append(beside if row else 0)
        self.lines.append(line)
        before = len(self.begins)
        for one in row:
            spans = _spans(one) or [(0, 0)]
            self.begins.extend(begin for begin, _ in spans)
            self.ends.extend(end for _, end in spans)
            self.firsts.extend([1] + [0] * (len(spans) - 1))
        self.counts.append(len(self.begins) - before)

    def add(self, other: Lengths, lines_before: int) -> None:
        for row, reason in other.refused:
            if len(self.refused) < _LISTED:
                self.refused.append((row + self.rows, reason))
        self.refused_rows += other.refused_rows
        self.bills_text = other.bills_text
        self.lines.extend(array("Q", (line + lines_before for line in other.lines)))
        for name in (*_INTS, "firsts"):
            getattr(self, name).extend(getattr(other, name))

    def to_bytes(self) -> bytes:
        """For keeping; little endian, one array after the other."""
        arrays = [*(getattr(self, name) for name in _INTS), self.firsts, self.lines]
        head = _HEAD.pack(self.rows, len(self.begins), self.bills_text)
        return b"".join([head, *(_little(one).tobytes() for one in arrays)])

    @classmethod
    def of(cls, data: bytes, refused: list[tuple[int, str]], refused_rows: int) -> Lengths:
        rows, spans, bills_text = _HEAD.unpack_from(data)
        found = cls(bills_text=bills_text, refused=refused, refused_rows=refused_rows)
        place = _HEAD.size
        for name in (*_INTS, "firsts", "lines"):
            one: array[int] = getattr(found, name)
            size = one.itemsize * (spans if name in ("begins", "ends", "firsts") else rows)
            one.frombytes(data[place : place + size])
            if sys.byteorder == "big":
                one.byteswap()
            place += size
        return found

    def under(self, max_length: int, overlength: Overlength) -> Selection:
        """Which rows are trained under a limit, exactly as a run will read them. Rows = trained + left out."""
        import numpy as np

        longest, other, beside = (
            np.frombuffer(one, np.uint32).astype(np.int64) for one in (self.longest, self.other, self.beside)
        )
        cuts = overlength == "truncate"
        is_long = longest > max_length
        learned, is_empty = self._learned(max_length if cuts else None)
        is_refused = longest == 0
        too_long = ~is_refused & is_long & ((overlength == "drop") | is_empty)
        nothing = ~is_refused & ~is_long & is_empty
        kept = ~(is_refused | too_long | nothing)
        text = np.minimum(longest, max_length) + np.minimum(other, max_length) if cuts else longest + other
        billed = beside + (text if self.bills_text else 0)
        chosen = Selection(
            rows=self.rows,
            trained_rows=int(kept.sum()),
            truncated=int((kept & is_long).sum()) if cuts else 0,
            too_long=int((kept & is_long).sum()),
            billed_tokens=int(billed[kept].sum()),
            trained_tokens=int(learned[kept].sum()),
        )
        for reason, rows in (("refused", is_refused), ("too_long", too_long), ("nothing_trained", nothing)):
            if count := int(rows.sum()):
                chosen.dropped_counts[reason] = count
        for row in np.flatnonzero(~kept)[:_LISTED]:
            reason = "refused" if is_refused[row] else "too_long" if too_long[row] else "nothing_trained"
            chosen.dropped.append({"row": int(row) + 1, "reason": reason, "tokens": int(longest[row])})
        return chosen

    def _learned(self, max_length: int | None) -> tuple[Any, Any]:
        """Of each row, how many tokens are learned, and whether one of its sequences has none, once it is cut there."""
        import numpy as np

        if not self.bills_text:
            return np.zeros(self.rows, np.int64), np.zeros(self.rows, bool)
        begins, ends = (np.frombuffer(one, np.uint32).astype(np.int64) for one in (self.begins, self.ends))
        if max_length is not None:
            begins, ends = np.minimum(begins, max_length), np.minimum(ends, max_length)
        row_of = np.repeat(np.arange(self.rows), np.frombuffer(self.counts, np.uint32))
        learned = np.bincount(row_of, weights=ends - begins, minlength=self.rows).astype(np.int64)
        # the first span of a sequence is the earliest: when nothing of it is left, nothing of the sequence is
        is_empty = np.frombuffer(self.firsts, np.uint8).astype(bool) & (ends == begins)
        return learned, np.bincount(row_of, weights=is_empty, minlength=self.rows) > 0

    def statistics(self) -> dict[str, Any]:
        """Of the lengths of all rows: percentiles, and a histogram of twenty bars of equal width."""
        import numpy as np

        lengths = np.frombuffer(self.longest, dtype=np.uint32)
        lengths = lengths[lengths > 0]
        if not len(lengths):
            return {"percentiles": {}, "histogram": []}
        points = {
            f"p{point}": int(np.percentile(lengths, point, method="higher")) for point in (1, 5, 25, 50, 75, 95, 99)
        }
        top = int(lengths.max())
        width = max(-(-(top + 1) // _BARS), 1)
        bars = np.bincount(lengths // width, minlength=1)
        return {
            "percentiles": {"min": int(lengths.min()), **points, "max": top},
            "mean": round(float(lengths.mean()), 1),
            "histogram": [
                {"from": number * width, "to": (number + 1) * width - 1, "rows": int(rows)}
                for number, rows in enumerate(bars)
            ],
        }


@dataclass
class Selection:
    """Rows in = rows trained + rows dropped. `dropped` lists rows, reasons and lengths; the counts go on."""

    rows: int
    trained_rows: int = 0
    truncated: int = 0
    too_long: int = 0
    billed_tokens: int = 0
    trained_tokens: int = 0
    dropped: list[dict[str, Any]] = field(default_factory=list)
    dropped_counts: dict[str, int] = field(default_factory=dict)


def count_file(source: Source, form: str, model: Path, *, processes: int = 1) -> Lengths:
    """Count the rows of a file without problems, with the tokenizer and the renderer in the model's folder."""
    whole = Lengths()
    lines = 0
    with rows_in(source) as (rows, _):
        for found, spanned in _counted_pieces(rows, form, model, processes):
            whole.add(found, lines)
            lines += spanned
    return whole


def _counted_pieces(source: Source, form: str, model: Path, processes: int) -> Iterator[tuple[Lengths, int]]:
    bounds = piece_bounds(source)
    places = list(pairwise(bounds))
    if processes == 1 or len(places) == 1:
        for start, end in places:
            yield count_piece(source, form, model, start, end)
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has a core to itself
    context = multiprocessing.get_context("fork" if isinstance(source, LocalFile | Given) else "spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = [pool.submit(count_piece, source, form, model, start, end) for start, end in places]
        for future in waiting:
            yield future.result()


def count_piece(source: Source, form: str, model: Path, start: int, end: int) -> tuple[Lengths, int]:
    """Lengths of the rows between two places, both at the start of a line, and how many lines that are."""
    plugin, renderer = formats.load(form), renderer_in(model)
    found = Lengths(bills_text=bills_text(plugin.kind))
    reader = Reader(source.blocks(start, end), is_start=start == 0)
    batch: list[Record] = []
    for record in reader:
        if isinstance(record, Record):
            batch.append(record)
            if len(batch) == _BATCH:
                _count(batch, plugin, renderer, found)
                batch.clear()
    _count(batch, plugin, renderer, found)
    return found, reader.lines


def _count(batch: list[Record], plugin: Any, renderer: Renderer, found: Lengths) -> None:
    values = [plugin.value(record.value) for record in batch]
    try:
        rows: list[tuple[Rendered, ...] | str] = list(sequences(values, renderer))
    except InvalidRequest:  # one of them is refused: find out which
        rows = [_alone(value, renderer) for value in values]
    for record, value, row in zip(batch, values, rows, strict=True):
        if isinstance(row, str):
            found.refused_rows += 1
            if len(found.refused) < _LISTED:
                found.refused.append((found.rows + 1, row))
            row = ()
        found.take(row, record.line, image_tokens(plugin.kind, measure(value).images))


def _alone(value: Any, renderer: Renderer) -> tuple[Rendered, ...] | str:
    try:
        return sequences([value], renderer)[0]
    except InvalidRequest as refused:
        return refused.message


def _spans(one: Rendered) -> list[tuple[int, int]]:
    """Runs of tokens that are learned; the first token has nothing before it to be learned from."""
    flags = b"\0" + bytes(map(bool, one.weights[1:])) + b"\0"
    spans: list[tuple[int, int]] = []
    begin = flags.find(1)
    while begin >= 0:
        end = flags.find(0, begin)
        spans.append((begin, end))
        begin = flags.find(1, end)
    return spans


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


def _little(one: array[int]) -> array[int]:
    if sys.byteorder == "big":
        one = array(one.typecode, one)
        one.byteswap()
    return one
