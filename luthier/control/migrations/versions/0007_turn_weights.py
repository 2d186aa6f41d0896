"""Lengths of rows by what becomes of answers of weight 0. Until now they were never trained."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_BEFORE = ["file_id", "weights", "renderer_sha256"]


def upgrade() -> None:
    op.add_column("file_lengths", sa.Column("turn_weights", sa.String(length=16), nullable=True))
    op.execute("UPDATE file_lengths SET turn_weights = 'honoured'")
    with op.batch_alter_table("file_lengths", schema=None) as batch_op:
        batch_op.alter_column("turn_weights", existing_type=sa.String(length=16), nullable=False)
        batch_op.drop_constraint(batch_op.f("uq_file_lengths_file_id"), type_="unique")
        batch_op.create_unique_constraint(batch_op.f("uq_file_lengths_file_id"), [*_BEFORE, "turn_weights"])


def downgrade() -> None:
    op.execute("DELETE FROM file_lengths WHERE turn_weights != 'honoured'")
    with op.batch_alter_table("file_lengths", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("uq_file_lengths_file_id"), type_="unique")
        batch_op.drop_column("turn_weights")
        batch_op.create_unique_constraint(batch_op.f("uq_file_lengths_file_id"), _BEFORE)
