"""Chat rows that are plainly right, found by a compiled decoder; everything else is left to a careful look."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Annotated, Literal

import msgspec

_UNSET = msgspec.UNSET


class _Turn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "user", "assistant"]
    content: Annotated[str, msgspec.Meta(min_length=1)]


class _Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: list[_Turn]


class _OddTurn(_Turn, forbid_unknown_fields=True, gc=False):
    weight: Literal[0, 1] | msgspec.UnsetType = _UNSET


class _OddRow(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: list[_OddTurn]
    tag: str | msgspec.UnsetType = _UNSET


_DECODE = msgspec.json.Decoder(_Row).decode
_DECODE_ODD = msgspec.json.Decoder(_OddRow).decode
_NOT_DECODED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_role = attrgetter("role")
_content = attrgetter("content")
_first = itemgetter(0)
_MOST_TURNS = 64
_NEVER = [None]
_USER_FIRST: list[Sequence[str | None]] = [
    ["user", "assistant"] * (turns // 2) if turns and turns % 2 == 0 else _NEVER for turns in range(_MOST_TURNS)
]
_SYSTEM_FIRST: list[Sequence[str | None]] = [
    ["system", *["user", "assistant"] * (turns // 2)] if turns > 1 and turns % 2 else _NEVER
    for turns in range(_MOST_TURNS)
]
_ORDER = [
    "".join(filter(None, _USER_FIRST[turns])) or "".join(filter(None, _SYSTEM_FIRST[turns])) or "-"
    for turns in range(_MOST_TURNS)
]
"""Roles of so many turns, one after the other; for too few of them what no roles make."""

_MOST_TAGS = 10_000


class QuickChat:
    """Counts rows of `messages` that are a system turn, if any, and turns of user and assistant by turns. A row that it takes
    begins with its line, for only there does the reader know a row from a part of another record.

    What the decoder lets pass though it is wrong is found by counting: a key that stands twice leaves more quotes in a
    line than its values account for.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.turns = 0
        self.trained_turns = 0
        self.characters = 0
        self.tags: dict[str, int] = {}
        self.hashes = array("q")
        self.lines = array("Q")

    def __call__(self, lines: list[bytes], first_line: int) -> Sequence[int]:
        """Take over the rows that are plainly right; the places of all other lines."""
        return () if self._all_plain(lines, first_line) else self._one_by_one(lines, first_line)

    def _all_plain(self, lines: list[bytes], first_line: int) -> bool:
        """Take over all lines together, where each of them is plainly right and none has weights or a tag.

        It does what `_one_by_one` does, in loops that are compiled: most blocks of most files go this way.
        """
        try:
            messages = [row.messages for row in map(_DECODE, lines)]
        except _NOT_DECODED:
            return False
        counts = list(map(len, messages))
        turns = list(chain.from_iterable(messages))
        contents = list(map(_content, turns))
        if (
            max(counts, default=_MOST_TURNS) >= _MOST_TURNS
            or "".join(map(_role, turns)) != "".join(map(_ORDER.__getitem__, counts))  # no role begins another
            or True in map(str.isspace, contents)
            or set(map(_first, lines)) != {0x7B}
            or not _holds(b"\n".join(lines), len(lines) + 4 * len(turns))
        ):
            return False
        self._take(lines, messages, contents, [])
        self.lines.extend(range(first_line, first_line + len(lines)))
        return True

    def _one_by_one(self, lines: list[bytes], first_line: int) -> Sequence[int]:
        doubtful: list[int] = []
        plain: list[list[_Turn]] = []
        odd: list[_OddRow] = []
        decode, user_first, system_first = _DECODE, _USER_FIRST, _SYSTEM_FIRST
        for place, line in enumerate(lines):
            try:
                messages = decode(line).messages
                if line[0] != 0x7B:
                    doubtful.append(place)
                    continue
            except _NOT_DECODED:
                if (row := _odd(line)) is None or line[0] != 0x7B:
                    doubtful.append(place)
                else:
                    odd.append(row)
                continue
            roles = list(map(_role, messages))
            turns = len(roles)
            if turns < _MOST_TURNS and (roles == user_first[turns] or roles == system_first[turns]):
                plain.append(messages)
            else:
                doubtful.append(place)
        if not plain and not odd:
            return doubtful
        left_out = set(doubtful)
        good = [line for place, line in enumerate(lines) if place not in left_out] if left_out else lines
        contents = list(map(_content, chain.from_iterable(plain)))
        strings = len(plain) + 4 * len(contents) + sum(map(_strings_of, odd))
        if True in map(str.isspace, contents) or not _holds(b"\n".join(good), strings):
            if len(lines) == 1:
                return [0]
            return [place for place, line in enumerate(lines) if self([line], first_line + place)]  # find out which
        self._take(good, plain, contents, odd)
        if left_out:
            self.lines.extend([first_line + place for place in range(len(lines)) if place not in left_out])
        else:
            self.lines.extend(range(first_line, first_line + len(lines)))
        return doubtful

    def _take(self, good: list[bytes], plain: list[list[_Turn]], contents: list[str], odd: list[_OddRow]) -> None:
        self.rows += len(good)
        self.hashes.extend(list(map(hash, good)))
        self.turns += len(contents)
        self.trained_turns += sum([len(messages) // 2 for messages in plain])  # half of them, a system turn apart
        self.characters += sum(map(len, contents))
        for row in odd:
            self.turns += len(row.messages)
            self.trained_turns += sum(1 for turn in row.messages if turn.role == "assistant" and turn.weight != 0)
            self.characters += sum(len(turn.content) for turn in row.messages)
            if row.tag is not _UNSET and (row.tag in self.tags or len(self.tags) < _MOST_TAGS):
                self.tags[row.tag] = self.tags.get(row.tag, 0) + 1


def _odd(line: bytes) -> _OddRow | None:
    """A row with weights or a tag; None where it needs a careful look."""
    try:
        row = _DECODE_ODD(line)
    except _NOT_DECODED:
        return None
    messages = row.messages
    start = 1 if messages and messages[0].role == "system" else 0
    answers = messages[start + 1 :: 2]
    if not answers or (len(messages) - start) % 2 or all(turn.weight == 0 for turn in answers):
        return None
    for place, turn in enumerate(messages):
        expected = "system" if place < start else "user" if (place - start) % 2 == 0 else "assistant"
        has_weight = turn.weight is not _UNSET
        if turn.role != expected or turn.content.isspace() or (has_weight and expected != "assistant"):
            return None
    return row


def _strings_of(row: _OddRow) -> int:
    """How many texts, keys among them, the row has."""
    weights = sum(1 for turn in row.messages if turn.weight is not _UNSET)
    return (1 if row.tag is _UNSET else 3) + 4 * len(row.messages) + weights


def _holds(data: bytes, strings: int) -> bool:
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
            return _holds_with_pairs(data, strings)
        quotes -= np.count_nonzero(is_backslash & is_quote[1:])
        if (is_backslash & (signs[1:] == 0x75)).any() and b"\\u0000" in data:
            return False
    return bool(quotes == 2 * strings)


def _holds_with_pairs(data: bytes, strings: int) -> bool:
    """The same where a backslash may be escaped itself."""
    data = data.replace(b"\\\\", b"")
    return data.count(b'"') - data.count(b'\\"') == 2 * strings and b"\\u0000" not in data
