"""Deployments and replicas as they are kept."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from luthier.control.db import Leased, Owned, Table


def _unique_where(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, unique=True, sqlite_where=text(where), postgresql_where=text(where))


class DeploymentRow(Owned, Leased, Table):
    """A model on replicas of its own. What its replicas load is settled when it is made, so that all of them load the same.

    `model` is the name that it was made of, `method` how that was trained (None: a base model). `weights_sha256` is None until
    the files of a whole model were looked at. `grown_from` are the replicas that answered when it last began to change: progress
    counts from there. `failed_starts` are those in a row; none is started before `start_after`.
    """

    __tablename__ = "deployments"
    __table_args__ = (_unique_where("uq_deployments_name", "project_id", "name", where="status != 'deleted'"),)

    name: Mapped[str] = mapped_column(String(200))
    model: Mapped[str] = mapped_column(String(160), index=True)
    method: Mapped[str | None] = mapped_column(String(32))
    base_model: Mapped[str] = mapped_column(String(64))
    weights: Mapped[str] = mapped_column(String(256))
    weights_sha256: Mapped[str | None] = mapped_column(String(64))
    artifact_sha256: Mapped[str | None] = mapped_column(String(64))
    tokenizer: Mapped[str | None] = mapped_column(String(256))
    renderer_sha256: Mapped[str | None] = mapped_column(String(64))
    adapter: Mapped[dict[str, Any] | None]
    capacity: Mapped[int]
    grown_from: Mapped[int]
    status: Mapped[str] = mapped_column(String(16), index=True)
    error: Mapped[dict[str, Any] | None]
    failed_starts: Mapped[int]
    start_after: Mapped[datetime | None]
    created_by: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    changed_at: Mapped[datetime]


class ReplicaRow(Owned, Leased, Table):
    """One process for a model: wanted, starting, ready, draining, stopping, then gone.

    Of one folder of weights, tokenizer and template at most one row of the shared pool is not gone, so that ten requests at once
    want one replica. Those of a deployment belong to its project and have a place each; one that is draining has left its place,
    gets no new request, and stops when it is idle or its time is over. `ready_at` is when it answered first.
    """

    __tablename__ = "replicas"
    __table_args__ = (
        _unique_where("uq_replicas_live", "weights", where="status != 'gone' AND deployment_id IS NULL"),
        _unique_where(
            "uq_replicas_place",
            "deployment_id",
            "place",
            where="deployment_id IS NOT NULL AND status IN ('wanted', 'starting', 'ready')",
        ),
    )

    status: Mapped[str] = mapped_column(String(16), index=True)
    base_model: Mapped[str] = mapped_column(String(64))
    weights: Mapped[str] = mapped_column(String(256))
    weights_sha256: Mapped[str] = mapped_column(String(64))
    tokenizer: Mapped[str | None] = mapped_column(String(256))
    deployment_id: Mapped[str | None] = mapped_column(String(64))
    place: Mapped[int | None]
    socket: Mapped[str | None] = mapped_column(String(256))
    handle: Mapped[dict[str, Any] | None]
    last_used_at: Mapped[datetime]
    created_at: Mapped[datetime]
    ready_at: Mapped[datetime | None]
    draining_since: Mapped[datetime | None]
