"""Chat rows with functions: `tools` beside `messages`, assistants that call them, and `tool` messages that answer."""

from __future__ import annotations

from luthier.formats._turns import Rules, check_row, conversation, images_in, repaired_messages
from luthier.formats.base import DatasetFormat, Findings, Row, Value
from luthier.formats.messages import has_functions, is_chat
from luthier.records.problems import type_of

RULES = Rules(tools=True, fields=frozenset({"messages", "tools", "parallel_tool_calls", "tag"}))


class FunctionCalling(DatasetFormat):
    kind = "chat"
    includes = frozenset({"messages"})
    describes = '{"messages": [...], "tools": [{"type": "function", "function": {...}}]}'

    @classmethod
    def recognises(cls, row: Row) -> bool:
        return is_chat(row) and has_functions(row) and not images_in(row["messages"])

    @classmethod
    def check(cls, row: Row, findings: Findings) -> None:
        check_row(row, findings, RULES)
        check_parallel(row, findings)

    @classmethod
    def value(cls, row: Row) -> Value:
        return conversation(row)

    @classmethod
    def repaired(cls, row: Row) -> Row:
        return repaired_messages(row, RULES)


def check_parallel(row: Row, findings: Findings, *path: str) -> None:
    """Check `parallel_tool_calls`, which is allowed and changes nothing."""
    if "parallel_tool_calls" in row and not isinstance(row["parallel_tool_calls"], bool):
        found = type_of(row["parallel_tool_calls"])
        findings.add("wrong_type", (*path, "parallel_tool_calls"), found=found, expected="boolean")
