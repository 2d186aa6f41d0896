"""Files as they are kept."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from luthier.control.db import Leased, Owned, Table


class FileRow(Owned, Leased, Table):
    """`status` is uploaded (not yet read), processed (can be trained) or error (`report` says what is wrong)."""

    __tablename__ = "files"

    filename: Mapped[str] = mapped_column(String(1024))
    purpose: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(256))
    status: Mapped[str] = mapped_column(String(16), index=True)
    report: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
