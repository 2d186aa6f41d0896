"""Models on replicas of their own; the replicas of before are all of the shared pool."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from luthier.control.db import UtcDateTime

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def _unique_where(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, unique=True, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def upgrade() -> None:
    op.create_table(
        "deployments",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("model", sa.String(length=160), nullable=False),
        sa.Column("method", sa.String(length=32), nullable=True),
        sa.Column("base_model", sa.String(length=64), nullable=False),
        sa.Column("weights", sa.String(length=256), nullable=False),
        sa.Column("weights_sha256", sa.String(length=64), nullable=True),
        sa.Column("artifact_sha256", sa.String(length=64), nullable=True),
        sa.Column("tokenizer", sa.String(length=256), nullable=True),
        sa.Column("renderer_sha256", sa.String(length=64), nullable=True),
        sa.Column("adapter", Json, nullable=True),
        sa.Column("capacity", sa.Integer(), nullable=False),
        sa.Column("grown_from", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("error", Json, nullable=True),
        sa.Column("failed_starts", sa.Integer(), nullable=False),
        sa.Column("start_after", UtcDateTime(), nullable=True),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("changed_at", UtcDateTime(), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("lease_token", sa.String(length=64), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_deployments_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployments")),
    )
    for column in ("project_id", "status", "model"):
        op.create_index(op.f(f"ix_deployments_{column}"), "deployments", [column], unique=False)
    _unique_where("uq_deployments_name", "deployments", ["project_id", "name"], "status != 'deleted'")
    op.add_column("replicas", sa.Column("tokenizer", sa.String(length=256), nullable=True))
    op.add_column("replicas", sa.Column("deployment_id", sa.String(length=64), nullable=True))
    op.add_column("replicas", sa.Column("place", sa.Integer(), nullable=True))
    op.add_column("replicas", sa.Column("ready_at", UtcDateTime(), nullable=True))
    op.add_column("replicas", sa.Column("draining_since", UtcDateTime(), nullable=True))
    op.drop_index("uq_replicas_live", table_name="replicas")
    _unique_where("uq_replicas_live", "replicas", ["weights"], "status != 'gone' AND deployment_id IS NULL")
    _unique_where(
        "uq_replicas_place",
        "replicas",
        ["deployment_id", "place"],
        "deployment_id IS NOT NULL AND status IN ('wanted', 'starting', 'ready')",
    )


def downgrade() -> None:
    op.drop_index("uq_replicas_place", table_name="replicas")
    op.drop_index("uq_replicas_live", table_name="replicas")
    op.execute("DELETE FROM replicas WHERE deployment_id IS NOT NULL")
    for column in ("draining_since", "ready_at", "place", "deployment_id", "tokenizer"):
        op.drop_column("replicas", column)
    _unique_where("uq_replicas_live", "replicas", ["weights"], "status != 'gone'")
    op.drop_index("uq_deployments_name", table_name="deployments")
    for column in ("model", "status", "project_id"):
        op.drop_index(op.f(f"ix_deployments_{column}"), table_name="deployments")
    op.drop_table("deployments")
