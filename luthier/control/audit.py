"""Who did what, written in the same transaction as the deed."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from luthier.control.db import Owned, Table
from luthier.control.tenancy import Principal
from luthier.core import ids
from luthier.core.clock import Clock


class AuditRow(Owned, Table):
    __tablename__ = "audit"

    principal: Mapped[str] = mapped_column(String(64))
    deed: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(128), index=True)
    at: Mapped[datetime]


def note(session: AsyncSession, who: Principal, deed: str, subject: str, clock: Clock) -> None:
    """Add a line that says that `who` did `deed` ("file.created") to `subject` (an id)."""
    session.add(
        AuditRow(
            id=ids.new("audit"), project_id=who.project, principal=who.id, deed=deed, subject=subject, at=clock.now()
        )
    )
