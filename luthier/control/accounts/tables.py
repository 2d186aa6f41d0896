"""Projects and API keys as they are kept."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from luthier.control.db import Owned, Table


class ProjectRow(Table):
    __tablename__ = "projects"

    name: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime]


class KeyRow(Owned, Table):
    """`id` is the part of the key before the dot; the secret is sealed under the server key."""

    __tablename__ = "api_keys"

    name: Mapped[str] = mapped_column(String(128))
    sealed_secret: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
