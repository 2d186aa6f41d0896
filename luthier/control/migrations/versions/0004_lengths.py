"""Lengths of rows by the model's folder and its renderer: other tokenizers count otherwise. They are counted again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _replace("weights_sha256", "renderer_sha256", ["file_id", "weights", "renderer_sha256"])
    # Reports of before do not say where the pieces of a file begin; rows of such files are found all the same.


def downgrade() -> None:
    _replace("renderer_sha256", "weights_sha256", ["file_id", "weights_sha256"])


def _replace(old: str, new: str, unique: list[str]) -> None:
    op.execute("DELETE FROM file_lengths")
    with op.batch_alter_table("file_lengths", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("uq_file_lengths_file_id"), type_="unique")
        batch_op.drop_column(old)
        batch_op.add_column(sa.Column(new, sa.String(length=64), nullable=False))
        batch_op.create_unique_constraint(batch_op.f("uq_file_lengths_file_id"), unique)
