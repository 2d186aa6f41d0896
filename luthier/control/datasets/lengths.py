"""How long the rows of a file are in the tokens of one model, and which of them a limit leaves out."""

from __future__ import annotations

import struct
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from luthier.chat.examples import Overlength
from luthier.chat.renderers.base import Rendered

_BARS = 20
_LISTED = 1000

_INTS = ("longest", "other", "beside", "counts", "begins", "ends")
_HEAD = struct.Struct("<QQ?")  # rows, spans, whether the text is billed
_SIZE = struct.Struct("<Q")  # bytes of the block that follows


@dataclass
class Lengths:
    """Tokens of rows in the order of the file; `refused` are rows that the model cannot write, with the reason.

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

    def refuse(self, line: int, why: str) -> None:
        """Add a row that the model cannot write."""
        self.refused_rows += 1
        if len(self.refused) < _LISTED:
            self.refused.append((self.rows + 1, why))
        self.take((), line, 0)

    def moved(self, lines: int) -> Lengths:
        """The same rows, so many lines further down."""
        self.lines = array("Q", (line + lines for line in self.lines))
        return self

    def to_bytes(self) -> bytes:
        """For keeping; little endian, one array after the other. The reasons of what is refused are kept elsewhere."""
        arrays = [*(getattr(self, name) for name in _INTS), self.firsts, self.lines]
        head = _HEAD.pack(self.rows, len(self.begins), self.bills_text)
        return b"".join([head, *(_little(one).tobytes() for one in arrays)])

    @classmethod
    def of(cls, data: bytes) -> Lengths:
        rows, spans, bills_text = _HEAD.unpack_from(data)
        found = cls(bills_text=bills_text)
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
            shortest_too_long=int(longest[is_long].min()) if is_long.any() else None,
        )
        for reason, rows in (("refused", is_refused), ("too_long", too_long), ("nothing_trained", nothing)):
            if count := int(rows.sum()):
                chosen.dropped_counts[reason] = count
        for row in map(int, np.flatnonzero(~kept)[:_LISTED]):
            reason = "refused" if is_refused[row] else "too_long" if too_long[row] else "nothing_trained"
            dropped = {"row": row + 1, "line": self.lines[row], "reason": reason, "tokens": int(longest[row])}
            chosen.dropped.append(dropped)
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


@dataclass
class Selection:
    """Rows in = rows trained + rows dropped. `dropped` lists the first with row, line, reason and length; the counts go on.

    `too_long` are rows over the limit that are kept; `shortest_too_long` is the length of the shortest row over it.
    """

    rows: int = 0
    trained_rows: int = 0
    truncated: int = 0
    too_long: int = 0
    billed_tokens: int = 0
    trained_tokens: int = 0
    shortest_too_long: int | None = None
    dropped: list[dict[str, Any]] = field(default_factory=list)
    dropped_counts: dict[str, int] = field(default_factory=dict)

    def add(self, other: Selection) -> None:
        """Take in what was found of the rows that follow."""
        listed = other.dropped[: _LISTED - len(self.dropped)]
        self.dropped += [one | {"row": one["row"] + self.rows} for one in listed]
        self.dropped_counts = dict(Counter(self.dropped_counts) + Counter(other.dropped_counts))
        shortest = [one for one in (self.shortest_too_long, other.shortest_too_long) if one is not None]
        self.shortest_too_long = min(shortest, default=None)
        for name in ("rows", "trained_rows", "truncated", "too_long", "billed_tokens", "trained_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def under(blocks: Iterable[Lengths], max_length: int, overlength: Overlength) -> Selection:
    """Which rows of a file are trained under a limit, holding the lengths of one block at a time."""
    chosen = Selection()
    for lengths in blocks:
        chosen.add(lengths.under(max_length, overlength))
    return chosen


@dataclass
class Summary:
    """What is told of the lengths of a whole file. `refused` are the first rows that the model cannot write: row, line, why."""

    rows: int = 0
    tokens: int = 0
    longest: int = 0
    refused_rows: int = 0
    refused: list[tuple[int, int, str]] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)


def summed(blocks: Iterable[Lengths], out: IO[bytes] | None = None) -> Summary:
    """Go through the lengths of a file, one block at a time, and write them to `out` to be kept."""
    found = Summary()
    sizes: Counter[int] = Counter()
    for lengths in blocks:
        for row, why in lengths.refused[: _LISTED - len(found.refused)]:
            found.refused.append((found.rows + row, lengths.lines[row - 1], why))
        found.refused_rows += lengths.refused_rows
        found.rows += lengths.rows
        found.tokens += lengths.tokens
        sizes.update(lengths.longest)
        if out is not None:
            data = lengths.to_bytes()
            out.write(_SIZE.pack(len(data)) + data)
    sizes.pop(0, None)
    found.longest = max(sizes, default=0)
    found.statistics = _statistics(sizes)
    return found


def kept(blocks: Iterable[bytes]) -> Iterator[Lengths]:
    """The lengths of a file as `summed` wrote them, one block at a time."""
    held = bytearray()
    for some in blocks:
        held += some
        while len(held) >= _SIZE.size and len(held) >= (end := _SIZE.size + _SIZE.unpack_from(held)[0]):
            yield Lengths.of(bytes(held[_SIZE.size : end]))
            del held[:end]
    if held:
        raise ValueError("the lengths of the rows are cut off")


def _statistics(sizes: Counter[int]) -> dict[str, Any]:
    """Percentiles of the lengths of rows, each the length of a row, and a histogram of twenty bars of equal width."""
    if not sizes:
        return {"percentiles": {}, "histogram": []}
    rows, order = sizes.total(), sorted(sizes)
    points = {f"p{point}": -(-(rows - 1) * point // 100) for point in (1, 5, 25, 50, 75, 95, 99)}
    found: dict[str, int] = {}
    before = 0
    width = max(-(-(order[-1] + 1) // _BARS), 1)
    bars = [0] * (order[-1] // width + 1)
    for size in order:
        found |= {name: size for name, place in points.items() if before <= place < before + sizes[size]}
        before += sizes[size]
        bars[size // width] += sizes[size]
    return {
        "percentiles": {"min": order[0], **found, "max": order[-1]},
        "mean": round(sum(size * count for size, count in sizes.items()) / rows, 1),
        "histogram": [
            {"from": number * width, "to": (number + 1) * width - 1, "rows": count} for number, count in enumerate(bars)
        ],
    }


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


def _little(one: array[int]) -> array[int]:
    if sys.byteorder == "big":
        one = array(one.typecode, one)
        one.byteswap()
    return one
