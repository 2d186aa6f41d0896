"""Image understanding: chat rows with one image in a user's message, by URL or as base64 with its prefix."""

from __future__ import annotations

from typing import Any

from luthier.formats._turns import Rules, check_row, conversation, images_in, repaired_messages
from luthier.formats.base import DatasetFormat, Findings, Row, Value
from luthier.formats.messages import is_chat

RULES = Rules(images_of=frozenset({"user"}))


class ImageMessages(DatasetFormat):
    kind = "image_understanding"
    describes = '{"messages": [...]} with one {"type": "image_url", "image_url": {"url": ...}} in a user\'s content'

    @classmethod
    def recognises(cls, row: Row) -> bool:
        parts = image_parts(row)
        return bool(parts) and not any(is_named(part) for _, part in parts) and not in_answers_only(parts)

    @classmethod
    def claims(cls, row: Row) -> bool:
        return is_chat(row)

    @classmethod
    def check(cls, row: Row, findings: Findings) -> None:
        check_row(row, findings, RULES)
        check_one_image(row, findings)

    @classmethod
    def value(cls, row: Row) -> Value:
        return conversation(row)

    @classmethod
    def repaired(cls, row: Row) -> Row:
        return repaired_messages(row, RULES)


def image_parts(row: Row) -> list[tuple[str, dict[str, Any]]]:
    """The image parts of a conversation, each with the role that it belongs to."""
    if not is_chat(row):
        return []
    messages = row["messages"]
    return [
        (messages[place].get("role"), messages[place]["content"][number]) for place, _, number in images_in(messages)
    ]


def is_named(part: dict[str, Any]) -> bool:
    """Whether an image is given by the name of a file in an archive."""
    return "image" in part and "image_url" not in part


def in_answers_only(parts: list[tuple[str, dict[str, Any]]]) -> bool:
    """Whether the images are what is to be made, not what is to be understood."""
    return all(role == "assistant" for role, _ in parts)


def check_one_image(row: Row, findings: Findings) -> None:
    places = images_in(row.get("messages"))
    if not places and isinstance(row.get("messages"), list):
        findings.add("image_missing", ("messages",), expected="one image in the user's message")
    elif len(places) > 1:
        findings.add("images_too_many", ("messages", *places[1]), found=str(len(places)), expected="one image")
