"""Image understanding as Bailian publishes it: a zip archive of rows and images, which the rows call by their names."""

from __future__ import annotations

from luthier.formats._turns import Rules, check_row, conversation, repaired_messages
from luthier.formats.base import DatasetFormat, Findings, Row, Value
from luthier.formats.image_messages import check_one_image, image_parts, in_answers_only, is_named
from luthier.formats.messages import is_chat

RULES = Rules(images_of=frozenset({"user"}), archive=True)


class ImageArchive(DatasetFormat):
    kind = "image_understanding"
    describes = '{"messages": [...]} with {"image": "name.jpg"} in a user\'s content, in a zip archive with that image'
    in_archive = True

    @classmethod
    def recognises(cls, row: Row) -> bool:
        parts = image_parts(row)
        return bool(parts) and any(is_named(part) for _, part in parts) and not in_answers_only(parts)

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
