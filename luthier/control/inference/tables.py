"""Answers that are made in the background, as they are kept."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from luthier.control.db import Leased, Owned, Table


class AsyncCompletionRow(Owned, Leased, Table):
    """`status` is processing, succeeded (`result` has the answers) or failed (`result` has the error).

    `request` is empty once there is a result.
    """

    __tablename__ = "async_completions"

    key_id: Mapped[str] = mapped_column(String(64))  # of who asked
    request_id: Mapped[str] = mapped_column(String(256))  # as the caller called it
    model: Mapped[str] = mapped_column(String(256))
    status: Mapped[str] = mapped_column(String(16), index=True)
    request: Mapped[dict[str, Any]]  # and how its answers are told
    result: Mapped[str | None] = mapped_column(Text)  # JSON; as text, since PostgreSQL's own has no U+0000
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None] = mapped_column(index=True)
