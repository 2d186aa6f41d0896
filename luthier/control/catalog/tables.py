"""Fine-tuned models and checkpoints as they are kept: what a name in "model" leads to."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from luthier.control.db import Owned, Table


class ModelRow(Owned, Table):
    """`id` names these bytes for ever and is never reused; `name` is what a client writes. `kind` is fine_tuned or checkpoint.

    `method` made them, `artifact_kind` is what they are: an adapter, or a model.
    """

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("name"),)

    name: Mapped[str] = mapped_column(String(160))
    kind: Mapped[str] = mapped_column(String(16))
    method: Mapped[str] = mapped_column(String(32), server_default="lora")
    artifact_kind: Mapped[str] = mapped_column(String(16), server_default="adapter")
    job_id: Mapped[str] = mapped_column(String(64), index=True)
    step: Mapped[int]
    base_model: Mapped[str] = mapped_column(String(64))
    weights: Mapped[str] = mapped_column(String(256))
    weights_sha256: Mapped[str] = mapped_column(String(64))
    artifact_key: Mapped[str] = mapped_column(String(256))
    artifact_sha256: Mapped[str] = mapped_column(String(64))
    artifact_identity: Mapped[str | None] = mapped_column(String(64))
    renderer_sha256: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
