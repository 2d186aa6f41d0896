"""Image understanding as Bailian publishes it: a zip archive of rows and images, which the rows call by their names."""

from __future__ import annotations

from luthier.formats._chat import ImageRows, in_answers_only, is_named, pictures
from luthier.formats._turns import Rules
from luthier.formats.base import Row


class ImageArchive(ImageRows):
    kind = "image_understanding"
    describes = '{"messages": [...]} with {"image": "name.jpg"} in a user\'s content, in a zip archive with that image'
    in_archive = True
    rules = Rules(images_of=frozenset({"user"}), archive=True)
    wants = "one image in the user's message"

    @classmethod
    def recognises(cls, row: Row) -> bool:
        parts = pictures(row)
        return bool(parts) and any(is_named(part) for _, part in parts) and not in_answers_only(parts)
