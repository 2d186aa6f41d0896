"""Completions that are asked for now and fetched later."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from luthier.control.db import UtcDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_INDEXES = ("ended_at", "project_id", "status")


def upgrade() -> None:
    json = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")
    op.create_table(
        "async_completions",
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=256), nullable=False),
        sa.Column("model", sa.String(length=256), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("request", json, nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("lease_token", sa.String(length=64), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_async_completions_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_async_completions")),
    )
    with op.batch_alter_table("async_completions", schema=None) as batch_op:
        for column in _INDEXES:
            batch_op.create_index(batch_op.f(f"ix_async_completions_{column}"), [column], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("async_completions", schema=None) as batch_op:
        for column in _INDEXES:
            batch_op.drop_index(batch_op.f(f"ix_async_completions_{column}"))

    op.drop_table("async_completions")
