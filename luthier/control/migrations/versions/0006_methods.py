"""Models by the method that made them. All there were until now are adapters of lora."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("models", sa.Column("method", sa.String(length=32), nullable=False, server_default="lora"))
    op.add_column("models", sa.Column("artifact_kind", sa.String(length=16), nullable=False, server_default="adapter"))


def downgrade() -> None:
    op.drop_column("models", "artifact_kind")
    op.drop_column("models", "method")
