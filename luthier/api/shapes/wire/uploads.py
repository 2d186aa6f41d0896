"""A file that comes in parts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from luthier.api import examples
from luthier.api.received import Received
from luthier.api.shapes.wire.base import Sent
from luthier.api.shapes.wire.files import ExpiresAfter, FileObject, purpose
from luthier.control.datasets.uploads import Part, Upload


class CreateUpload(Received):
    """The `mime_type` that clients send is not kept: what a file holds is read from its bytes."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "bytes": 2097152,
                "filename": "train.jsonl",
                "mime_type": "application/jsonl",
                "purpose": "fine-tune",
            }
        }
    )

    bytes: Annotated[int, Field(ge=1)]
    filename: str
    purpose: str
    category: str | None = None
    mime_type: str | None = None
    expires_after: Annotated[
        ExpiresAfter | None, Field(description="How long the file stays that is made of the parts, from then on.")
    ] = None


class CompleteUpload(Received):
    model_config = ConfigDict(json_schema_extra={"example": {"part_ids": ["part-1", "part-2"]}})

    part_ids: list[str] = Field(description="The order of the ids is the order of the bytes.")
    md5: str | None = None


class UploadObject(Sent):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None

    @classmethod
    def of(cls, upload: Upload) -> UploadObject:
        return cls.model_validate(
            {
                "id": upload.id,
                "bytes": upload.bytes,
                "created_at": int(upload.created_at.timestamp()),
                "expires_at": int(upload.expires_at.timestamp()),
                "filename": upload.filename,
                "purpose": purpose(upload.purpose),
                "status": upload.status,
                "file": FileObject.of(upload.file) if upload.file else None,
            }
        )

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.UPLOAD)


class UploadPart(Sent):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str

    @classmethod
    def of(cls, part: Part) -> UploadPart:
        return cls(id=part.id, created_at=int(part.created_at.timestamp()), upload_id=part.upload)

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.PART)
