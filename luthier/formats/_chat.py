"""What formats have in common whose rows are one conversation in `messages`."""

from __future__ import annotations

from typing import Any, ClassVar

from luthier.formats._turns import Rules, check_row, conversation, image_parts, repaired_messages, source_of
from luthier.formats.base import DatasetFormat, Findings, Row, Value
from luthier.records.lenient import Path


class ChatRows(DatasetFormat):
    """Rows that are judged by `rules`."""

    rules: ClassVar[Rules]

    @classmethod
    def check(cls, row: Row, findings: Findings) -> None:
        check_row(row, findings, cls.rules)

    @classmethod
    def value(cls, row: Row) -> Value:
        return conversation(row)

    @classmethod
    def repaired(cls, row: Row) -> Row:
        return repaired_messages(row, cls.rules)


class ImageRows(ChatRows):
    """Rows with exactly one image; `wants` says where, as a message to somebody who left it out."""

    wants: ClassVar[str]

    @classmethod
    def claims(cls, row: Row) -> bool:
        return is_chat(row)

    @classmethod
    def check(cls, row: Row, findings: Findings) -> None:
        super().check(row, findings)
        places = image_parts(row.get("messages"))
        if not places and isinstance(row.get("messages"), list):
            findings.add("image_missing", ("messages",), expected=cls.wants)
        elif len(places) > 1:
            findings.add("images_too_many", ("messages", *places[1][0]), found=str(len(places)), expected="one image")

    @classmethod
    def images(cls, row: Row) -> list[tuple[Path, str]]:
        found = [(("messages", *path), source_of(part)) for path, part in image_parts(row.get("messages"))]
        return [(path, source) for path, source in found if isinstance(source, str)]


def is_chat(row: Row) -> bool:
    """Whether a row is one conversation, and not a pair of answers to it."""
    return "messages" in row and "chosen" not in row and "rejected" not in row


def has_functions(row: Row) -> bool:
    """Whether a row declares functions, calls one or answers a call."""
    if any(row.get(name) is not None for name in ("tools", "parallel_tool_calls")):
        return True
    messages = row.get("messages")
    return any(
        isinstance(message, dict) and (message.get("tool_calls") is not None or message.get("role") == "tool")
        for message in (messages if isinstance(messages, list) else ())
    )


def pictures(row: Row) -> list[tuple[str, dict[str, Any]]]:
    """The image parts of a conversation, each with the role that it belongs to."""
    if not is_chat(row):
        return []
    return [(row["messages"][path[0]].get("role"), part) for path, part in image_parts(row["messages"])]


def is_named(part: dict[str, Any]) -> bool:
    """Whether an image is given by the name of a file in an archive."""
    return "image" in part and "image_url" not in part


def in_answers_only(parts: list[tuple[str, dict[str, Any]]]) -> bool:
    """Whether the images are what is to be made, not what is to be understood."""
    return all(role == "assistant" for role, _ in parts)
