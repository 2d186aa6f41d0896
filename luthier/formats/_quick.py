"""Rows that are plainly right, found by a compiled decoder; everything else is left to a careful look."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from luthier.records.foreign import HARMLESS
from luthier.records.problems import MEANINGS, Level

UNSET = msgspec.UNSET
NOT_DECODED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
NO_LEVEL: frozenset[Level] = frozenset()

_MOST_TAGS = 10_000
_MOST_STRINGS = 20_000
_LABELS = tuple(sorted(HARMLESS))
_Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Label = str | bool | _Int | float | None | msgspec.UnsetType
_LONG_NUMBER = re.compile(rb"[0-9]{100}")
_labels = attrgetter(*_LABELS)

T = TypeVar("T", bound=msgspec.Struct)


class Found(msgspec.Struct, frozen=True, gc=False):
    """What a row without fault holds. `strings` are its texts, keys among them, but for those within `known`, a part of the
    line that was looked at before; `noted` the codes to be counted, where only their number is still of interest.
    """

    strings: int
    turns: int
    trained_turns: int
    characters: int
    tag: str | msgspec.UnsetType = UNSET
    noted: tuple[str, ...] = ()
    known: bytes = b""


def of_row(found: Found, strings: int, tag: str | msgspec.UnsetType, known: bytes = b"") -> Found:
    """What a row holds beside its conversation: so many further texts, its tag, and what was known of it."""
    strings += found.strings if tag is UNSET else found.strings + 2
    return Found(strings, found.turns, found.trained_turns, found.characters, tag, found.noted, known)


class QuickRows(Generic[T]):
    """Takes lines that a decoder reads as a `row`, and of which `judge` says what they hold. A row that is taken begins with its
    line, for only there does the reader know a row from a part of another record.

    What the decoder lets pass though it is wrong is found by counting: a key that stands twice leaves more quotes in a
    line than its values account for.
    """

    def __init__(self, row: type[T], judge: Callable[[T], Found | None]) -> None:
        """`row` allows no further fields, and all of its texts are `str`; `judge` says None where there is any doubt."""
        self._judge = judge
        self._decode = msgspec.json.Decoder(row).decode
        labels: Any = [(name, _Label, UNSET) for name in _LABELS]
        labelled: Any = msgspec.defstruct(f"{row.__name__}Labelled", labels, bases=(row,), forbid_unknown_fields=True)
        self._decode_labelled = msgspec.json.Decoder(labelled).decode
        self.turns = 0
        self.trained_turns = 0
        self.characters = 0
        self.tags: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self.hashes = array("q")
        self.lines = array("Q")

    def __call__(self, lines: list[bytes], first_line: int, full: frozenset[Level] = NO_LEVEL) -> Sequence[int]:
        found: list[Found] = []
        doubtful: list[int] = []
        for place, line in enumerate(lines):
            one = self._found(line, full)
            if one is None:
                doubtful.append(place)
            else:
                found.append(one)
        if not found:
            return doubtful
        left_out = set(doubtful)
        good = [line for place, line in enumerate(lines) if place not in left_out] if left_out else lines
        unknown = [_without(one.known, line) if one.known else line for line, one in zip(good, found, strict=True)]
        if not holds(b"\n".join(unknown), sum([one.strings for one in found])):
            if len(lines) == 1:
                return [0]
            return [
                place for place, line in enumerate(lines) if self([line], first_line + place, full)
            ]  # find out which
        self._add(good, found)
        self.lines.extend([first_line + place for place in range(len(lines)) if place not in left_out])
        return doubtful

    def _found(self, line: bytes, full: frozenset[Level]) -> Found | None:
        try:
            found = self._judge(self._decode(line))
        except NOT_DECODED:
            found = self._found_beside_labels(line) if "error" in full else None
        if found is None or line[0] != 0x7B or found.strings > _MOST_STRINGS:
            return None
        return found if not found.noted or all(MEANINGS[code].level in full for code in found.noted) else None

    def _found_beside_labels(self, line: bytes) -> Found | None:
        """What a row holds that has fields which only say which row it is. They are an error, so that nothing of it counts."""
        try:
            row = self._decode_labelled(line)
        except NOT_DECODED:
            return None
        found = self._judge(row)
        labels = [label for label in _labels(row) if label is not UNSET]
        if found is None or (float in map(type, labels) and _LONG_NUMBER.search(line)):
            return None
        strings = found.strings + len(labels) + list(map(type, labels)).count(str)
        return Found(strings, 0, 0, 0, noted=("unknown_field",) * len(labels) + found.noted, known=found.known)

    def _add(self, good: list[bytes], found: list[Found]) -> None:
        self.hashes.extend(list(map(hash, good)))
        for one in found:
            self.turns += one.turns
            self.trained_turns += one.trained_turns
            self.characters += one.characters
            if one.tag is not UNSET and (one.tag in self.tags or len(self.tags) < _MOST_TAGS):
                self.tags[one.tag] = self.tags.get(one.tag, 0) + 1
            if one.noted:
                self.counts.update(one.noted)


def _without(known: bytes, line: bytes) -> bytes:
    """The line without a part of it: looked for by its beginning, as a long text takes long to look for."""
    start = line.find(known[:32])
    if not line.startswith(known, start):
        return line.replace(known, b"", 1)
    return line[:start] + line[start + len(known) :]


def holds(data: bytes, strings: int) -> bool:
    """Whether valid JSON holds so many texts, keys among them, and no U+0000.

    A text has two quotes that no backslash escapes. Where one backslash follows another it must be told which of them
    escapes; elsewhere comparing all bytes with their neighbours at once is several times as fast.
    """
    import numpy as np

    signs = np.frombuffer(data, np.uint8)
    is_backslash = signs[:-1] == 0x5C
    is_quote = signs == 0x22
    quotes = np.count_nonzero(is_quote)
    if is_backslash.any():
        if (is_backslash & (signs[1:] == 0x5C)).any():
            return _holds_with_pairs(data.replace(b"\\\\", b""), strings)
        quotes -= np.count_nonzero(is_backslash & is_quote[1:])
        if (is_backslash & (signs[1:] == 0x75)).any() and b"\\u0000" in data:
            return False
    return bool(quotes == 2 * strings)


def _holds_with_pairs(data: bytes, strings: int) -> bool:
    """The same where a backslash may be escaped itself, for data that these were taken out of."""
    return data.count(b'"') - data.count(b'\\"') == 2 * strings and b"\\u0000" not in data
