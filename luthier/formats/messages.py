"""Chat rows: one `{"messages": [{"role": ..., "content": ...}, ...]}` a line, as OpenAI's fine-tuning takes them."""

from __future__ import annotations

from luthier.formats._turns import Rules, check_row, conversation, images_in, repaired_messages
from luthier.formats.base import DatasetFormat, Findings, Row, Value

RULES = Rules()


class Messages(DatasetFormat):
    kind = "chat"
    describes = '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}'

    @classmethod
    def recognises(cls, row: Row) -> bool:
        return is_chat(row) and not has_functions(row) and not images_in(row["messages"])

    @classmethod
    def check(cls, row: Row, findings: Findings) -> None:
        check_row(row, findings, RULES)

    @classmethod
    def value(cls, row: Row) -> Value:
        return conversation(row)

    @classmethod
    def repaired(cls, row: Row) -> Row:
        return repaired_messages(row, RULES)


def is_chat(row: Row) -> bool:
    """Whether a row is one conversation, and not a pair of answers to it."""
    return "messages" in row and "chosen" not in row and "rejected" not in row


def has_functions(row: Row) -> bool:
    """Whether a row declares functions, calls one or answers a call."""
    if row.get("tools") is not None or row.get("functions") is not None or "parallel_tool_calls" in row:
        return True
    messages = row.get("messages")
    return any(
        isinstance(message, dict) and (message.get("tool_calls") is not None or message.get("role") == "tool")
        for message in (messages if isinstance(messages, list) else ())
    )
