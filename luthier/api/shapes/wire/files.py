"""A file as these families' clients see it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from luthier.api import examples
from luthier.api.received import Received
from luthier.api.shapes.wire.base import Sent
from luthier.control.datasets.service import EXPIRES_AFTER_AT_LEAST_SECONDS, EXPIRES_AFTER_AT_MOST_SECONDS, File

Anchor = Literal["created_at"]
Lifetime = Annotated[int, Field(ge=EXPIRES_AFTER_AT_LEAST_SECONDS, le=EXPIRES_AFTER_AT_MOST_SECONDS)]
"""Seconds that a file stays."""


class ExpiresAfter(Received):
    anchor: Anchor
    seconds: Lifetime


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
                "expires_at": int(file.expires_at.timestamp()) if file.expires_at else None,
            }
        )

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.FILE)


def purpose(asked: str) -> str:
    """These families write `fine-tune`, another one `fine_tune`; they mean the same."""
    return "fine-tune" if asked == "fine_tune" else asked
