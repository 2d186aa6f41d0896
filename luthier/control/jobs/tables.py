"""Jobs, their runs, events and checkpoints as they are kept."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from luthier.control.db import Leased, Owned, Table


class JobRow(Owned, Leased, Table):
    """`request` is what the customer asked for; `spec` what will be trained, once the files were read."""

    __tablename__ = "jobs"

    status: Mapped[str] = mapped_column(String(16), index=True)
    request: Mapped[dict[str, Any]]
    spec: Mapped[dict[str, Any] | None]
    base_model: Mapped[str] = mapped_column(String(64))
    model_name: Mapped[str] = mapped_column(String(160))
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    seconds_left: Mapped[float | None]
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_param: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class RunRow(Owned, Table):
    """One attempt to carry out a job. `last_event` is the number of the last event taken over, -1 before the first."""

    __tablename__ = "runs"
    __table_args__ = (Index("ix_runs_job_attempt", "job_id", "attempt", unique=True),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    attempt: Mapped[int]
    handle: Mapped[dict[str, Any]]
    last_event: Mapped[int]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class EventRow(Owned, Table):
    """What happened to a job, in order. `superseded` marks steps that a later attempt took again after its checkpoint."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job_id_id", "job_id", "id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    level: Mapped[str] = mapped_column(String(8))
    kind: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None]
    attempt: Mapped[int]
    step: Mapped[int | None]
    superseded: Mapped[bool]
    created_at: Mapped[datetime]


class CheckpointRow(Owned, Table):
    """A state saved during a run that can be called as `model_name`."""

    __tablename__ = "checkpoints"
    __table_args__ = (Index("ix_checkpoints_job_id_step", "job_id", "step"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step: Mapped[int]
    attempt: Mapped[int]
    model_name: Mapped[str] = mapped_column(String(160))
    artifact_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    metrics: Mapped[dict[str, Any]]
    superseded: Mapped[bool]
    created_at: Mapped[datetime]
