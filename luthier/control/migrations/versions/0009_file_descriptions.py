"""Files keep the uploader's description and the md5 of what was uploaded; those of before have neither."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Other tables point to files, so nothing is done here for which SQLite would have to make that table anew.
    op.add_column("files", sa.Column("md5", sa.String(length=32), nullable=True))
    op.add_column("files", sa.Column("description", sa.String(length=1024), nullable=True))


def downgrade() -> None:
    op.drop_column("files", "description")
    op.drop_column("files", "md5")
