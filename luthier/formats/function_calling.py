"""Chat rows with functions: `tools` beside `messages`, assistants that call them, and `tool` messages that answer."""

from __future__ import annotations

import msgspec

from luthier.formats._chat import ChatRows, has_functions, is_chat
from luthier.formats._quick import UNSET, Found, QuickRows, of_row
from luthier.formats._talk import Turn, declared, found_in
from luthier.formats._turns import Rules, check_parallel, image_parts
from luthier.formats.base import Findings, Quick, Row
from luthier.records.foreign import has_retired_functions


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: list[Turn]
    tools: msgspec.Raw | msgspec.UnsetType = UNSET
    parallel_tool_calls: bool | msgspec.UnsetType | None = UNSET
    tag: str | msgspec.UnsetType = UNSET


class FunctionCalling(ChatRows):
    kind = "chat"
    includes = frozenset({"messages"})
    describes = '{"messages": [...], "tools": [{"type": "function", "function": {...}}]}'
    rules = Rules(tools=True, fields=frozenset({"messages", "tools", "parallel_tool_calls", "tag"}))

    @classmethod
    def recognises(cls, row: Row) -> bool:
        return (
            is_chat(row) and has_functions(row) and not has_retired_functions(row) and not image_parts(row["messages"])
        )

    @classmethod
    def check(cls, row: Row, findings: Findings) -> None:
        super().check(row, findings)
        check_parallel(row, findings)

    @classmethod
    def quick(cls) -> Quick:
        return QuickRows(_Plain, _found)


def _found(row: _Plain) -> Found | None:
    functions = declared(row.tools)
    if functions is None:
        return None
    found = found_in(row.messages, functions.names)
    strings = 1 + (row.tools is not UNSET) + (row.parallel_tool_calls is not UNSET)
    return found and of_row(found, strings, row.tag, functions.written)
