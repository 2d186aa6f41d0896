"""A file as these families' clients see it."""

from __future__ import annotations

from typing import Any, Literal

from luthier.api import examples
from luthier.api.shapes.wire.base import Sent
from luthier.control.datasets.service import File


class FileObject(Sent):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None = None
    expires_at: int | None = None

    @classmethod
    def of(cls, file: File) -> FileObject:
        return cls.model_validate(
            {
                "id": file.id,
                "bytes": file.bytes,
                "created_at": int(file.created_at.timestamp()),
                "filename": file.filename,
                "purpose": purpose(file.purpose),
                "status": file.status,
                "status_details": file.report.summary if file.report else None,
            }
        )

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.FILE)


def purpose(asked: str) -> str:
    """These families write `fine-tune`, another one `fine_tune`; they mean the same."""
    return "fine-tune" if asked == "fine_tune" else asked
