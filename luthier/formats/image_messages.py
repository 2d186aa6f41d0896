"""Image understanding: chat rows with one image in a user's message, by URL or as base64 with its prefix."""

from __future__ import annotations

from luthier.formats._chat import ImageRows, in_answers_only, is_named, pictures
from luthier.formats._turns import Rules
from luthier.formats.base import Row


class ImageMessages(ImageRows):
    kind = "image_understanding"
    describes = '{"messages": [...]} with one {"type": "image_url", "image_url": {"url": ...}} in a user\'s content'
    rules = Rules(images_of=frozenset({"user"}))
    wants = "one image in the user's message"

    @classmethod
    def recognises(cls, row: Row) -> bool:
        parts = pictures(row)
        return bool(parts) and not any(is_named(part) for _, part in parts) and not in_answers_only(parts)
