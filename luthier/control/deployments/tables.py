"""Replicas as they are kept."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from luthier.control.db import Leased, Owned, Table


class ReplicaRow(Owned, Leased, Table):
    """One process for a base model: wanted, starting, ready, stopping, then gone.

    Of one folder of weights, tokenizer and template at most one row is not gone, so that ten requests at once want one replica.
    """

    __tablename__ = "replicas"
    __table_args__ = (
        Index(
            "uq_replicas_live",
            "weights",
            unique=True,
            sqlite_where=text("status != 'gone'"),
            postgresql_where=text("status != 'gone'"),
        ),
    )

    status: Mapped[str] = mapped_column(String(16), index=True)
    base_model: Mapped[str] = mapped_column(String(64))
    weights: Mapped[str] = mapped_column(String(256))
    weights_sha256: Mapped[str] = mapped_column(String(64))
    socket: Mapped[str | None] = mapped_column(String(256))
    handle: Mapped[dict[str, Any] | None]
    last_used_at: Mapped[datetime]
    created_at: Mapped[datetime]
