"""Versions of files, the category that a file was said to be of, and the lengths of its rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from luthier.control.db import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    json = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")
    with op.batch_alter_table("files", schema=None) as batch_op:
        batch_op.add_column(sa.Column("category", sa.String(length=32), nullable=True))
        batch_op.add_column(sa.Column("parent_id", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("operation", json, nullable=True))
        batch_op.create_index(batch_op.f("ix_files_parent_id"), ["parent_id"], unique=False)
    # Reports of before have another shape; the files are read again.
    op.execute("UPDATE files SET report = NULL, status = 'uploaded' WHERE deleted_at IS NULL")
    op.execute("UPDATE files SET report = NULL WHERE deleted_at IS NOT NULL")

    op.create_table(
        "file_lengths",
        sa.Column("file_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("weights", sa.String(length=256), nullable=False),
        sa.Column("weights_sha256", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=256), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("result", json, nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("lease_token", sa.String(length=64), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_file_lengths_file_id_files")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_file_lengths_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_file_lengths")),
        sa.UniqueConstraint("file_id", "weights_sha256", name=op.f("uq_file_lengths_file_id")),
    )
    with op.batch_alter_table("file_lengths", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_file_lengths_project_id"), ["project_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_file_lengths_status"), ["status"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("file_lengths", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_file_lengths_status"))
        batch_op.drop_index(batch_op.f("ix_file_lengths_project_id"))

    op.drop_table("file_lengths")
    with op.batch_alter_table("files", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_files_parent_id"))
        batch_op.drop_column("operation")
        batch_op.drop_column("parent_id")
        batch_op.drop_column("category")
