"""Files, how long their rows are, and uploads that become files, as they are kept."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from luthier.control.db import Leased, Owned, Table


class FileRow(Owned, Leased, Table):
    """`status` is uploaded (not yet read), processed (can be trained) or error (`report` says what is wrong)."""

    __tablename__ = "files"

    filename: Mapped[str] = mapped_column(String(1024))
    purpose: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    md5: Mapped[str | None] = mapped_column(String(32))  # of what came as a stream: uploads, and files that were joined
    key: Mapped[str] = mapped_column(String(256))
    status: Mapped[str] = mapped_column(String(16), index=True)
    category: Mapped[str | None] = mapped_column(String(32))  # the format that the uploader said it is of
    description: Mapped[str | None] = mapped_column(String(1024))  # the uploader's words
    parent_id: Mapped[str | None] = mapped_column(String(64), index=True)  # the file it was made from
    operation: Mapped[dict[str, Any] | None]  # how: name, options, what came of it
    report: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None] = mapped_column(index=True)  # None: it stays until it is deleted
    deleted_at: Mapped[datetime | None]


class LengthsRow(Owned, Leased, Table):
    """Tokens of a file's rows by one model. `status` is counting, counted (`result` says what was found) or error."""

    __tablename__ = "file_lengths"
    __table_args__ = (UniqueConstraint("file_id", "weights", "renderer_sha256", "turn_weights"),)

    file_id: Mapped[str] = mapped_column(ForeignKey("files.id"))
    model: Mapped[str] = mapped_column(String(64))
    weights: Mapped[str] = mapped_column(String(256))  # storage key of the model's folder, which never changes
    renderer_sha256: Mapped[str] = mapped_column(String(64))
    turn_weights: Mapped[str] = mapped_column(String(16))  # by which some tokens of a row are learned, or all answers
    key: Mapped[str] = mapped_column(String(256))  # of the folder of the lengths, once counted
    status: Mapped[str] = mapped_column(String(16), index=True)
    result: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]


class UploadRow(Owned, Leased, Table):
    """A file that comes in parts. `status` is pending (parts are taken), completed, cancelled or expired.

    Its lease is held while the parts are put together. `file_id` is the file they become; before the upload is completed
    that file has no row, and what lies under its key is unfinished work.
    """

    __tablename__ = "uploads"

    filename: Mapped[str] = mapped_column(String(1024))
    purpose: Mapped[str] = mapped_column(String(64))
    category: Mapped[str | None] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)  # that the caller announced
    status: Mapped[str] = mapped_column(String(16))
    part_count: Mapped[int]
    part_bytes: Mapped[int] = mapped_column(BigInteger)
    file_id: Mapped[str | None] = mapped_column(String(64))
    file_expires_after_seconds: Mapped[int | None]  # from when the file is made; None: it stays until it is deleted
    md5: Mapped[str | None] = mapped_column(String(32))  # of the file, once completed
    order_sha256: Mapped[str | None] = mapped_column(String(64))  # of the part ids it was completed with
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    cleared_at: Mapped[datetime | None] = mapped_column(index=True)  # when the last of its parts was removed


class UploadPartRow(Owned, Table):
    """A part that lies in the storage, until its upload has ended."""

    __tablename__ = "upload_parts"

    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(256))
    created_at: Mapped[datetime]
