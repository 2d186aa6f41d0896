"""Image generation: a prompt of text, and the one image that the assistant's message holds."""

from __future__ import annotations

from luthier.chat.messages import Conversation, ImageGeneration
from luthier.formats._chat import ImageRows, in_answers_only, pictures
from luthier.formats._turns import Rules, conversation, image_parts
from luthier.formats.base import Findings, Row, Value


class ImageGenerationRows(ImageRows):
    kind = "image_generation"
    describes = '{"messages": [{"role": "user", ...}, {"role": "assistant", "content": [{"type": "image_url", ...}]}]}'
    rules = Rules(images_of=frozenset({"assistant"}))
    wants = "one image in the assistant's message"

    @classmethod
    def recognises(cls, row: Row) -> bool:
        parts = pictures(row)
        return bool(parts) and in_answers_only(parts)

    @classmethod
    def check(cls, row: Row, findings: Findings) -> None:
        super().check(row, findings)
        parts = image_parts(row.get("messages"))
        if len(parts) == 1 and (path := parts[0][0])[0] != len(row["messages"]) - 1:
            findings.add("image_place", ("messages", *path), found="earlier message", expected="last message")

    @classmethod
    def value(cls, row: Row) -> Value:
        whole = conversation(row)
        return ImageGeneration(Conversation(whole.messages[:-1]), whole.images[0])
