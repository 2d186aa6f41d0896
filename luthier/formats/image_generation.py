"""Image generation: a prompt of text, and the one image that the assistant's message holds."""

from __future__ import annotations

from luthier.chat.messages import Conversation, ImageGeneration
from luthier.formats._turns import Rules, check_row, conversation, images_in, repaired_messages
from luthier.formats.base import DatasetFormat, Findings, Row, Value
from luthier.formats.image_messages import image_parts, in_answers_only
from luthier.formats.messages import is_chat

RULES = Rules(images_of=frozenset({"assistant"}))


class ImageGenerationRows(DatasetFormat):
    kind = "image_generation"
    describes = '{"messages": [{"role": "user", ...}, {"role": "assistant", "content": [{"type": "image_url", ...}]}]}'

    @classmethod
    def recognises(cls, row: Row) -> bool:
        parts = image_parts(row)
        return bool(parts) and in_answers_only(parts)

    @classmethod
    def claims(cls, row: Row) -> bool:
        return is_chat(row)

    @classmethod
    def check(cls, row: Row, findings: Findings) -> None:
        check_row(row, findings, RULES)
        messages = row.get("messages")
        if not isinstance(messages, list):
            return
        places = images_in(messages)
        if not places:
            findings.add("image_missing", ("messages",), expected="one image in the assistant's message")
        elif len(places) > 1:
            findings.add("images_too_many", ("messages", *places[1]), found=str(len(places)), expected="one image")
        elif places[0][0] != len(messages) - 1:
            findings.add("image_place", ("messages", *places[0]), found="earlier message", expected="last message")

    @classmethod
    def value(cls, row: Row) -> Value:
        whole = conversation(row)
        return ImageGeneration(Conversation(whole.messages[:-1]), whole.images[0])

    @classmethod
    def repaired(cls, row: Row) -> Row:
        return repaired_messages(row, RULES)
