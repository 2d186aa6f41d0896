"""Chat rows that are plainly right: whole blocks of plain ones together, the others one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Annotated, Literal

import msgspec

from luthier.formats._quick import NO_LEVEL, NOT_DECODED, UNSET, Found, QuickRows, holds, of_row
from luthier.formats._talk import Turn, found_in
from luthier.records.problems import Level


class _PlainTurn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "user", "assistant"]
    content: Annotated[str, msgspec.Meta(min_length=1)]


class _PlainRow(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: list[_PlainTurn]


class _Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: list[Turn]
    tools: msgspec.UnsetType | None = UNSET
    parallel_tool_calls: msgspec.UnsetType | None = UNSET
    tag: str | msgspec.UnsetType = UNSET


_DECODE_PLAIN = msgspec.json.Decoder(_PlainRow).decode

_role = attrgetter("role")
_content = attrgetter("content")
_first = itemgetter(0)
_MOST_TURNS = 64


def _order(turns: int) -> str:
    """Roles of so many turns, one after the other; for too few of them what no roles make."""
    system = "system" if turns % 2 else ""
    return system + "userassistant" * (turns // 2) if turns > 1 else "-"


_ORDER = list(map(_order, range(_MOST_TURNS)))


class QuickChat(QuickRows[_Row]):
    """Rows of `messages` without functions."""

    def __init__(self) -> None:
        super().__init__(_Row, _found)

    def __call__(self, lines: list[bytes], first_line: int, full: frozenset[Level] = NO_LEVEL) -> Sequence[int]:
        return () if self._all_plain(lines, first_line) else super().__call__(lines, first_line, full)

    def _all_plain(self, lines: list[bytes], first_line: int) -> bool:
        """Take over all lines together, where each is a system turn, if any, and turns of user and assistant by turns, without
        further fields: in loops that are compiled. Most blocks of most files go this way.
        """
        try:
            messages = [row.messages for row in map(_DECODE_PLAIN, lines)]
        except NOT_DECODED:
            return False
        counts = list(map(len, messages))
        turns = list(chain.from_iterable(messages))
        contents = list(map(_content, turns))
        if (
            max(counts, default=_MOST_TURNS) >= _MOST_TURNS
            or "".join(map(_role, turns)) != "".join(map(_ORDER.__getitem__, counts))  # no role begins another
            or True in map(str.isspace, contents)
            or set(map(_first, lines)) != {0x7B}
            or not holds(b"\n".join(lines), len(lines) + 4 * len(turns))
        ):
            return False
        self.turns += len(contents)
        self.trained_turns += sum([count // 2 for count in counts])  # half of them, a system turn apart
        self.characters += sum(map(len, contents))
        self.hashes.extend(list(map(hash, lines)))
        self.lines.extend(range(first_line, first_line + len(lines)))
        return True


def _found(row: _Row) -> Found | None:
    found = found_in(row.messages, None)
    return found and of_row(found, 1 + (row.tools is None) + (row.parallel_tool_calls is None), row.tag)
