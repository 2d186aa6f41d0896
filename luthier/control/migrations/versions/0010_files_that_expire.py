"""Files may expire; those of before stay until they are deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from luthier.control.db import UtcDateTime

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Other tables point to these two, so nothing is done here for which SQLite would have to make them anew.
    op.add_column("files", sa.Column("expires_at", UtcDateTime(), nullable=True))
    op.create_index(op.f("ix_files_expires_at"), "files", ["expires_at"], unique=False)
    op.add_column("uploads", sa.Column("file_expires_after_seconds", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("uploads", "file_expires_after_seconds")
    op.drop_index(op.f("ix_files_expires_at"), table_name="files")
    op.drop_column("files", "expires_at")
