"""Artifacts have an identity; those of before are known by their bytes alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("models", sa.Column("artifact_identity", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("models", "artifact_identity")
