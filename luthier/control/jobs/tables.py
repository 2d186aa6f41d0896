"""Jobs, their runs, events and checkpoints as they are kept."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from luthier.control.db import Leased, Owned, Table


class JobRow(Owned, Leased, Table):
    """`request` is what the customer asked for; `spec` what will be trained, once the files were read.

    `inputs` are the files that it is trained on, which may be made of those that were asked for. `told` counts its events, so
    that each gets a number while the row is locked; `lost_runs` its processes that ended without being asked.
    """

    __tablename__ = "jobs"

    status: Mapped[str] = mapped_column(String(16), index=True)
    wish: Mapped[str | None] = mapped_column(String(16))
    request: Mapped[dict[str, Any]]
    inputs: Mapped[dict[str, Any] | None]
    spec: Mapped[dict[str, Any] | None]
    base_model: Mapped[str] = mapped_column(String(64))
    model_name: Mapped[str] = mapped_column(String(160))
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    seconds_left: Mapped[float | None]
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_param: Mapped[str | None] = mapped_column(String(64))
    told: Mapped[int] = mapped_column(server_default="0")
    lost_runs: Mapped[int] = mapped_column(server_default="0")
    created_by: Mapped[str | None] = mapped_column(String(64))  # a key; unknown of jobs from before this was kept
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]


class RunRow(Owned, Table):
    """One attempt to carry out a job. `last_event` is the number of the last event taken over, -1 before the first.

    `is_pausing` says that its process was asked to stop so that a later attempt goes on.
    """

    __tablename__ = "runs"
    __table_args__ = (Index("ix_runs_job_attempt", "job_id", "attempt", unique=True),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    attempt: Mapped[int]
    handle: Mapped[dict[str, Any]]
    last_event: Mapped[int]
    is_pausing: Mapped[bool] = mapped_column(server_default=false())
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class EventRow(Owned, Table):
    """What happened to a job, in order: `number` counts from 1 and is never changed. `superseded` marks steps that a later
    attempt took again after its checkpoint.
    """

    __tablename__ = "job_events"
    __table_args__ = (
        Index("ix_job_events_job_id_id", "job_id", "id"),
        Index("ix_job_events_job_id_number", "job_id", "number", unique=True),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    number: Mapped[int]
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
