"""Files as DashScope's clients read them."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from luthier.api import examples
from luthier.api.dashscope.wire.envelope import Paged, Sent, moment
from luthier.control.datasets.service import File


class UploadedFile(Sent):
    file_id: str
    name: str


class FailedUpload(Sent):
    """Why one of several files was not taken; the others were."""

    name: str
    code: str
    message: str


class Uploaded(Sent):
    uploaded_files: list[UploadedFile]
    failed_uploads: list[FailedUpload]

    @classmethod
    def example(cls) -> Any:
        taken = UploadedFile(file_id=examples.FILE.id, name=examples.FILE.filename)
        return cls(uploaded_files=[taken], failed_uploads=[])


class FileObject(Sent):
    file_id: str
    name: str
    description: str
    size: int = Field(description="Bytes.")
    md5: str | None = Field(description="Of what was uploaded; null for a file that was made here.")
    gmt_create: str = Field(description="YYYY-MM-DD HH:MM:SS, UTC.")
    upload_time: str = Field(description="The same.")
    url: str | None = Field(default=None, description="Always null: contents are given back by /v1/files/{id}/content.")
    purpose: str
    status: str = Field(description="Ours: uploaded (not yet read), processed (can be trained on) or error.")
    status_details: str | None = Field(description="Ours: what reading the file found.")

    @classmethod
    def of(cls, file: File) -> FileObject:
        return cls(
            file_id=file.id,
            name=file.filename,
            description=file.description or "",
            size=file.bytes,
            md5=file.md5,
            gmt_create=moment(file.created_at),
            upload_time=moment(file.created_at),
            purpose=file.purpose,
            status=file.status,
            status_details=file.report.summary if file.report else None,
        )

    @classmethod
    def example(cls) -> Any:
        return cls.of(examples.FILE)


class FileList(Paged):
    files: list[FileObject]

    @classmethod
    def example(cls) -> Any:
        return cls(files=[FileObject.of(examples.FILE)], page_no=1, page_size=10, total=1)


class Deleted(Sent):
    deleted: bool = True

    @classmethod
    def example(cls) -> Any:
        return cls()
