"""Blocks of bytes into records, one after the other: quickly where lines are clean, carefully where they are not."""

from __future__ import annotations

import codecs
import json
import re
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

from luthier.records.lenient import (
    DEEPEST,
    LONGEST_NUMBER,
    MOST_VALUES,
    ROW_FIELDS,
    UNSURE,
    Parsed,
    Path,
    first_key,
    parse,
)
from luthier.records.problems import Problem

LONGEST_RECORD = 16 * 1024 * 1024
"""Bytes of a record that are read, so that memory stays flat; room for an image of 10 MB in base64."""

_MOST_LINES = 100_000  # of one record
_MOST_BROKEN = 1000  # elements of an array that are first tried the quick way


@dataclass
class Record:
    """One row as it stands in the file, from its first sign to its last. `value` is what was read or meant; None with faults
    where nothing could be.

    `problems` are those of notation; `row` and `line` count from 1 within what was given to the reader.
    """

    row: int
    line: int
    text: str
    value: Any
    problems: list[Problem] = field(default_factory=list)
    column: int = 1

    def problem(self, code: str, path: Path, *, found: str = "", expected: str = "", of_key: bool = False) -> Problem:
        """A fault of this record at the value (or the key) of that path, or at the nearest thing around it that there is."""
        line, column = self._place(path, of_key=of_key)
        index = next((at for of, at in pairwise(path) if of == "messages" and isinstance(at, int)), None)
        return Problem(
            line=line,
            column=column,
            row=self.row,
            message_index=index,
            field=_dotted(path) or None,
            code=code,
            found=found,
            expected=expected,
        )

    @property
    def is_sure(self) -> bool:
        """Whether the value is what was meant, faults that change nothing of it apart."""
        return not any(problem.code in UNSURE for problem in self.problems)

    @cached_property
    def _parsed(self) -> Parsed:
        return parse(self.text)

    def _place(self, path: Path, *, of_key: bool) -> tuple[int, int]:
        if of_key and path in self._parsed.keys:
            return self.at(self._parsed.keys[path])
        while path and path not in self._parsed.values:
            path = path[:-1]
        return self.at(self._parsed.values.get(path, 0))

    def add(self, code: str, offset: int, found: str = "", expected: str = "") -> None:
        """Note a fault of notation at a character of the text."""
        line, column = self.at(offset)
        self.problems.append(Problem(line=line, column=column, row=self.row, code=code, found=found, expected=expected))

    def at(self, offset: int) -> tuple[int, int]:
        """Line and column of a character of the text."""
        feeds = bisect_left(self._feeds, offset)
        if not feeds:
            return self.line, self.column + offset
        return self.line + feeds, offset - self._feeds[feeds - 1]

    @cached_property
    def _feeds(self) -> array[int]:
        """Where the line feeds of the text are."""
        feeds, place = array("Q"), self.text.find("\n")
        while place >= 0:
            feeds.append(place)
            place = self.text.find("\n", place + 1)
        return feeds


@dataclass(frozen=True)
class Blank:
    """A line without anything on it."""

    line: int


Quick = Callable[[list[bytes], int], Sequence[int]]
"""Takes lines and the number of the first, and returns the places of those that must be looked at carefully; the others
are rows without fault."""


class Reader:
    """Reads the records of consecutive blocks of a file. `rows`, `lines` and `ended_at` say how far it has come."""

    def __init__(
        self,
        blocks: Iterable[bytes],
        *,
        beyond: Callable[[], Iterable[bytes]] | None = None,
        quick: Quick | None = None,
        is_start: bool = True,
        longest: int = LONGEST_RECORD,
    ) -> None:
        """`blocks` begin where a line begins and end where one ends; `is_start` says that the first is the file's first.

        `beyond` gives the blocks that follow, asked for only when the last record goes on there. `quick` is asked about
        every line once. Memory stays within a few blocks and the `longest` record, in bytes.
        """
        self._blocks = iter(blocks)
        self._beyond = beyond
        self._quick: Quick | None = quick
        self._is_start = is_start
        self._longest = longest
        self._lines: list[bytes] = []  # whole lines, without their feeds
        self._next = 0  # of them, the next to be read
        self._suspicious: deque[int] = deque()  # places among them
        self._rest = b""  # what follows the last feed
        self._own = 0  # of the lines, those before this one are of the blocks, the others of those beyond
        self._is_beyond = False
        self._is_skipping = False  # the rest is of a line that is too long
        self._hopeless = 0  # number of the line up to which a record was looked for and not found whole
        self.ended_at = 0
        """Bytes that were read as records or skipped; more than the blocks had where the last record went on beyond them."""
        self.rows = 0
        self.lines = 0

    def __iter__(self) -> Iterator[Record | Blank | Problem]:
        """Records that `quick` did not take, blank lines, and problems that belong to no record."""
        if self._is_start:
            yield from self._opening()
        while self._next < self._own or (not self._is_beyond and self._more()):
            while self._suspicious and self._suspicious[0] < self._next:
                self._suspicious.popleft()
            place = min(self._suspicious[0], self._own) if self._suspicious else self._own
            clean = self._lines[self._next : place]
            self.rows += len(clean)
            self.lines += len(clean)
            self.ended_at += sum(map(len, clean)) + len(clean)
            self._next = place
            if place < self._own:
                yield from self._careful()

    # One record, carefully

    def _careful(self) -> Iterator[Record | Blank | Problem]:
        """What begins on the next line: mostly one record, with all lines that it spans."""
        first, number = self._lines[self._next], self.lines + 1
        if isinstance(first, _TooLong):
            self._advance(1)
            self.rows += 1
            yield Problem(line=number, column=1, row=self.rows, code="record_too_long", expected=f"{self._longest:,}")
            return
        if not first.strip():
            self._advance(1)
            yield Blank(number)
            return
        if not is_nothing(value := strict(first)):
            self._advance(1)
            self.rows += 1
            yield Record(self.rows, number, first.decode(), value)
            return
        text, parsed, taken = self._gathered(_decoded(first))
        if parsed.is_cut and all(fault.code == "comment" for fault in parsed.faults):
            line = Record(self.rows, number, text, None)
            for fault in parsed.faults:
                line.add(fault.code, fault.offset, fault.found)
            yield from (problem.model_copy(update={"row": None}) for problem in line.problems)
            self._advance(taken)
            return
        yield from self._records(text, parsed, number, taken)

    def _gathered(self, first: str) -> tuple[str, Parsed, int]:
        """The text of a record that begins on the next line, what it says, and how many lines that are. `first` is that line,
        from where the record begins.
        """
        text, taken, parsed, key = first, 1, parse(first), first_key(first)
        is_wary = self.lines < self._hopeless
        while parsed.is_cut and parsed.end >= len(text) and len(text) <= self._longest and taken < _MOST_LINES:
            more: list[str] = []
            while len(more) < taken and len(text) <= self._longest and self._has_line(taken + len(more)):
                line = self._lines[self._next + taken + len(more)]
                if isinstance(line, _TooLong) or _starts_row(line, key, is_wary=is_wary):
                    break
                more.append(_decoded(line))
            if not more:
                break
            text = "\n".join([text, *more])
            taken += len(more)
            parsed = parse(text)
            key = key or first_key(text)
        if taken > 1 and parsed.is_cut and parsed.end >= len(text) and not is_wary:
            self._hopeless = (
                self.lines + taken
            )  # it ends nowhere: then at least before a line that is an object by itself
            for ahead in range(1, taken):
                if _starts_row(self._lines[self._next + ahead], key, is_wary=True):
                    text = "\n".join([first, *map(_decoded, self._lines[self._next + 1 : self._next + ahead])])
                    return text, parse(text), ahead
        return text, parsed, taken

    def _records(self, text: str, parsed: Parsed, number: int, taken: int) -> Iterator[Record]:
        """The record that was read, and all that begin on the last line of the one before."""
        start, line, column = 0, number, 1
        while True:
            self.rows += 1
            end = max(parsed.end, start + 1)
            if (
                not isinstance(parsed.value, dict | list) and not parsed.is_cut
            ):  # no record at all: the whole line is shown
                feed = text.find("\n", end)
                end = len(text) if feed < 0 else feed
            record = Record(self.rows, line, text[start:end], parsed.value, column=column)
            if "\n" in record.text and not parsed.is_cut:
                record.add("several_lines", 0)
            for fault in parsed.faults:
                record.add(fault.code, fault.offset - start, fault.found, fault.expected)
            follows, place = False, end
            if not parsed.is_cut:
                feed = text.find("\n", end)
                limit = len(text) if feed < 0 else feed
                while place < limit and text[place] in " \t\r,":
                    place += 1
                follows = text.startswith(("{", "["), place) and place < limit
                if isinstance(parsed.value, dict | list):
                    if follows or place < limit:
                        said = _start_of(text[place : min(limit, place + 41)])
                        record.add("shares_line" if follows else "text_after_record", place - start, said)
                    elif (comma := text.find(",", end, limit)) >= 0:
                        record.add("comma_after_record", comma - start)
            yield record
            if not follows:
                break
            line, column = record.at(place - start)
            start = place
            parsed = parse(text, start)
            if parsed.is_cut and parsed.end >= len(text):  # it goes on
                self._advance(text.count("\n", 0, place))
                text, parsed, taken = self._gathered(text[place:].split("\n", 1)[0])
                start = 0
        self._advance(taken if end >= len(text) else min(text.count("\n", 0, end) + 1, taken))

    def _advance(self, lines: int) -> None:
        for line in self._lines[self._next : self._next + lines]:
            self.ended_at += 1 + (line.size if isinstance(line, _TooLong) else len(line))
        self._next += lines
        self.lines += lines

    # Lines

    def _has_line(self, ahead: int) -> bool:
        """Whether there is a line so far ahead of the next one, also beyond the blocks."""
        while self._next + ahead >= len(self._lines):
            if self._more():
                continue
            beyond, self._beyond = self._beyond, None
            if beyond is None:
                return False
            self._blocks, self._is_beyond, self._quick = iter(beyond()), True, None
        return True

    def _more(self) -> bool:
        """Read blocks until there are further whole lines; False at the end."""
        parts, size = [self._rest], len(self._rest)
        skipped = 0  # bytes of a line that is too long
        while (block := next(self._blocks, None)) is not None:
            end = block.rfind(b"\n")
            if end < 0:
                parts.append(block)
                size += len(block)
                if size > self._longest:
                    skipped += size
                    parts, size = [], 0
                continue
            lines = b"".join([*parts, block[:end]]).split(b"\n")
            self._rest = block[end + 1 :]
            return self._take(lines, skipped)
        last, self._rest = b"".join(parts), b""
        return bool(last or skipped) and self._take([last], skipped)

    def _take(self, lines: list[bytes], skipped: int) -> bool:
        """Add whole lines to those that are still to be read; of the first, so many bytes were skipped."""
        if skipped or sum(map(len, lines)) > self._longest:
            sizes = [len(line) for line in lines]
            sizes[0] += skipped
            lines = [_TooLong(size) if size > self._longest else line for line, size in zip(lines, sizes, strict=True)]
        kept = self._lines[self._next :]
        self._suspicious = deque(place - self._next for place in self._suspicious if place >= self._next)
        found = range(len(lines)) if self._quick is None else self._quick(lines, self.lines + len(kept) + 1)
        self._suspicious.extend(len(kept) + place for place in found)
        self._own -= self._next
        self._lines, self._next = kept + lines, 0
        if not self._is_beyond:
            self._own = len(self._lines)
        return True

    # The beginning of a file

    def _opening(self) -> Iterator[Record | Problem]:
        """A byte order mark, and files that are one JSON array."""
        first = b""
        while len(first) < 3 or not first.removeprefix(codecs.BOM_UTF8).strip():
            if len(first) > self._longest or (block := next(self._blocks, None)) is None:
                break
            first += block
        if first.startswith(codecs.BOM_UTF8):
            first = first[3:]
            self.ended_at += 3
            yield Problem(line=1, column=1, code="byte_order_mark")
        self._blocks = chain([first] if first else [], self._blocks)
        if first.lstrip()[:1] == b"[" and self._is_array():
            yield from self._array()

    def _is_array(self) -> bool:
        """Whether what begins with a bracket is one array of rows, not lines of which the first is an array."""
        own: list[bytes] = []
        head, is_read = bytearray(), False
        for block in self._blocks:
            own.append(block)
            head += block
            if is_read := len(head) > self._longest or _goes_on(head, block):
                break
        self._blocks = chain(own, self._blocks)
        if not is_read and self._beyond is not None:
            for block in self._beyond():
                head += block
                if len(head) > self._longest or _goes_on(head, block):
                    break
        whole = bytes(head).lstrip()
        if whole[1:].lstrip()[:1] not in (b"{", b"]", b""):
            return False
        line, _, after = whole.partition(b"\n")
        value = strict(line)
        if not isinstance(value, list):
            return True
        if value and all(isinstance(turn, dict) and not {"role", "from"}.isdisjoint(turn) for turn in value):
            return False  # a conversation
        return not after.strip()

    def _array(self) -> Iterator[Record | Problem]:
        """A file that is one array, on as many lines as it likes: its elements are the rows."""
        text = self._next_text(1)
        while "[" not in text:
            text += self._next_text(1)
        at = text.index("[")
        line, column = 1 + text.count("\n", 0, at), at - text.rfind("\n", 0, at)
        opened = (line, column)
        yield Problem(line=line, column=column, code="json_array")
        at, column = at + 1, column + 1
        broken = 0
        while True:
            gap = _BETWEEN.match(text, at)
            assert gap is not None
            if feeds := gap.group().count("\n"):
                line, column = line + feeds, gap.end() - text.rfind("\n", at, gap.end())
            else:
                column += gap.end() - at
            at = gap.end()
            if at >= len(text):
                if not (text := self._next_text(1)):
                    yield Problem(line=opened[0], column=opened[1], code="unclosed", found="[", expected="]")
                    break
                at = 0
                continue
            if text[at] == "]":
                yield from self._after_array(text[at + 1 :], line, column + 1)
                break
            parsed = _element(text, at, is_doubtful=broken > _MOST_BROKEN)
            while (parsed.end >= len(text) or (parsed.faults and parsed.end + _AHEAD > len(text))) and len(
                text
            ) - at <= self._longest:
                if not (more := self._next_text(len(text) - at)):
                    break
                text, at = text[at:] + more, 0
                parsed = _element(text, at, is_doubtful=broken > _MOST_BROKEN)
            self.rows += 1
            end = max(parsed.end, at + 1)  # past a sign that begins no value
            if parsed.end >= len(text) and len(text) - at > self._longest:
                yield Problem(
                    line=line, column=column, row=self.rows, code="record_too_long", expected=f"{self._longest:,}"
                )
                self._drop_all()  # where the next one begins cannot be told
                self.lines = line
                return
            record = Record(self.rows, line, text[at:end], parsed.value, column=column)
            broken += 1 if parsed.faults else 0
            for fault in parsed.faults:
                record.add(fault.code, fault.offset - at, fault.found, fault.expected)
            yield record
            line, column = record.at(end - at)
            at = end
            if at > _FAR:
                text, at = text[at:], 0
        self.lines = max(self.lines, line)

    def _after_array(self, text: str, line: int, column: int) -> Iterator[Problem]:
        """What follows the array on its line is nothing of it; further lines are read as lines."""
        while "\n" not in text and len(text) <= self._longest and (more := self._next_text(1)):
            text += more
        rest, _, after = text.partition("\n")
        if said := rest.strip():
            place = column + len(rest) - len(rest.lstrip())
            yield Problem(line=line, column=place, code="text_after_record", found=_start_of(said))
        self.lines = line
        if after or self._rest:
            back = after.encode("utf-8", "surrogateescape") + self._rest
            self.ended_at -= len(back)
            self._rest = b""
            self._blocks = chain([back], self._blocks)

    def _drop_all(self) -> None:
        self._rest = b""
        while (block := self._next_block()) is not None:
            self.ended_at += len(block)

    def _next_block(self) -> bytes | None:
        """The next block of an array, also from beyond."""
        block = next(self._blocks, None)
        if block is None and self._beyond is not None:
            beyond = iter(self._beyond())
            self._beyond = None
            if (block := next(beyond, None)) is not None:
                self._blocks, self._is_beyond, self._quick = beyond, True, None
        return block

    def _next_text(self, least: int) -> str:
        """At least so many further characters, unless the end comes first."""
        parts: list[str] = []
        size = 0
        while size < least and (block := self._next_block()) is not None:
            data = self._rest + block
            whole = len(data) - _half_character(data)
            self._rest = data[whole:]
            self.ended_at += len(block)
            parts.append(_decoded(data[:whole]))
            size += len(parts[-1])
        if size < least and self._rest:
            parts.append(_decoded(self._rest))
            self._rest = b""
        return "".join(parts)


_BETWEEN = re.compile(r"[ \t\r\n,]*")
_AHEAD = 300  # characters after a fault that may be looked at
_FAR = 1024 * 1024  # characters of an array that were read are dropped
_NOTHING = object()


class _TooLong(bytes):
    """Stands for a line of so many bytes that was not kept."""

    size: int

    def __new__(cls, size: int) -> _TooLong:
        line = super().__new__(cls, b"\0")
        line.size = size
        return line


def strict(line: bytes) -> Any:
    """The value of a line that is JSON without any doubt about it; where there is one, a value that `is_nothing` knows."""
    try:
        text = line.decode()
        if len(text) > MOST_VALUES and text.count(",") + text.count("[") + text.count("{") > MOST_VALUES:
            return _NOTHING
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return _NOTHING
    return value if _is_fit(text, value) else _NOTHING


def is_nothing(value: Any) -> bool:
    return value is _NOTHING


def _is_fit(text: str, value: Any) -> bool:
    """Whether what a library took for JSON holds nothing that no text may hold, and is not nested too deeply."""
    if text.count("{") + text.count("[") > DEEPEST and _is_deeper(value, DEEPEST):
        return False
    return "\\u" not in text or not _has_unfit_sign(value)


def _has_unfit_sign(value: Any) -> bool:
    if isinstance(value, str):
        return _UNFIT.search(value) is not None
    if isinstance(value, dict):
        return any(_has_unfit_sign(key) or _has_unfit_sign(inner) for key, inner in value.items())
    return isinstance(value, list) and any(map(_has_unfit_sign, value))


_UNFIT = re.compile("[\0\ud800-\udfff]")


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inner)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _integer(said: str) -> int:
    if len(said) > LONGEST_NUMBER:
        raise ValueError("too many digits")
    return int(said)


def _number(said: str) -> float:
    number = float(said)
    if len(said) > LONGEST_NUMBER or number in (float("inf"), float("-inf")):
        raise ValueError("no number that can be kept")
    return number


def _refuse(said: str) -> Any:
    raise ValueError(said)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_repeats, parse_int=_integer, parse_float=_number, parse_constant=_refuse
)


def _goes_on(head: bytearray, block: bytes) -> bool:
    """Whether there is something after the first line that has a sign on it."""
    return b"\n" in head and not block.isspace() and b"\n" in bytes(head).strip()


def _element(text: str, at: int, *, is_doubtful: bool) -> Parsed:
    """An element of an array, by the quick way where it is clean."""
    if is_doubtful or text[at] not in '{["':
        return parse(text, at)
    try:
        value, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return parse(text, at)
    if _UNFIT.search(text, at, end) or not _is_fit(text[at:end], value):
        return parse(text, at)
    return Parsed(value, end, [], False)


def _starts_row(line: bytes, key: str | None, *, is_wary: bool) -> bool:
    """Whether a line is, or begins like, a row of its own, so that a record that is still open was cut off before it.

    `key` is what that record begins with; when wary, every line that is an object by itself is taken for a row.
    """
    if not line.startswith(b"{"):
        return False
    first = first_key(line[:200].decode("utf-8", "replace"))
    if first is not None and (first in ROW_FIELDS or first == key):
        return True
    value = strict(line)
    return isinstance(value, dict) and (is_wary or not ROW_FIELDS.isdisjoint(value))


def _half_character(data: bytes) -> int:
    """How many bytes at the end begin a character that is not whole."""
    for back in range(1, min(3, len(data)) + 1):
        lead = data[-back]
        if lead >= 0xC0:
            return back if back < (2 if lead < 0xE0 else 3 if lead < 0xF0 else 4) else 0
        if lead < 0x80:
            return 0
    return 0


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _start_of(text: str) -> str:
    shown = "".join(sign if sign.isprintable() else "\ufffd" for sign in text[:41])
    return shown if len(text) <= 40 else shown[:39] + "…"


def _dotted(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{_start_of(part)}" if text else _start_of(part)
    return text
