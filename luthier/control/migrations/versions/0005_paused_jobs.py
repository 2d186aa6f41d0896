"""Jobs that pause, are deleted and are made from several files; events with numbers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from luthier.control.db import UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

Json = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")
_jobs = sa.table(
    "jobs",
    sa.column("id", sa.String),
    sa.column("status", sa.String),
    sa.column("request", Json),
    sa.column("spec", Json),
)


def upgrade() -> None:
    # Other tables point to jobs, so nothing is done here for which SQLite would have to make that table anew.
    op.add_column("jobs", sa.Column("wish", sa.String(length=16), nullable=True))
    op.add_column("jobs", sa.Column("inputs", Json, nullable=True))
    op.add_column("jobs", sa.Column("told", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("lost_runs", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("created_by", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("deleted_at", UtcDateTime(), nullable=True))
    op.add_column("runs", sa.Column("is_pausing", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("job_events", sa.Column("number", sa.Integer(), nullable=True))
    op.execute(
        "UPDATE job_events SET number = counted.number FROM "
        "(SELECT id, ROW_NUMBER() OVER (PARTITION BY job_id ORDER BY id) AS number FROM job_events) AS counted "
        "WHERE counted.id = job_events.id"
    )
    with op.batch_alter_table("job_events", schema=None) as batch_op:
        batch_op.alter_column("number", existing_type=sa.Integer(), nullable=False)
        batch_op.create_index("ix_job_events_job_id_number", ["job_id", "number"], unique=True)
    op.execute("UPDATE jobs SET told = (SELECT COUNT(*) FROM job_events WHERE job_id = jobs.id)")
    op.execute("UPDATE jobs SET lost_runs = COALESCE((SELECT MAX(attempt) - 1 FROM runs WHERE job_id = jobs.id), 0)")
    _rewrite(_with_lists)


def downgrade() -> None:
    _end_what_is_new()
    _rewrite(_with_one_file)
    with op.batch_alter_table("job_events", schema=None) as batch_op:
        batch_op.drop_index("ix_job_events_job_id_number")
        batch_op.drop_column("number")
    op.drop_column("runs", "is_pausing")
    for name in ("deleted_at", "created_by", "lost_runs", "told", "inputs", "wish"):
        op.drop_column("jobs", name)


def _end_what_is_new() -> None:
    """Paused jobs wait again, where they waited before. Deleted ones, which have ended, are seen again."""
    connection = op.get_bind()
    for job, spec in connection.execute(sa.select(_jobs.c.id, _jobs.c.spec).where(_jobs.c.status == "paused")).all():
        waits = "checking" if spec is None else "queued"
        connection.execute(_jobs.update().where(_jobs.c.id == job).values(status=waits))


def _rewrite(change) -> None:
    """Change the requests of all jobs."""
    connection = op.get_bind()
    for job, request in connection.execute(sa.select(_jobs.c.id, _jobs.c.request)).all():
        connection.execute(_jobs.update().where(_jobs.c.id == job).values(request=change(request)))


def _with_lists(request: dict) -> dict:
    training, validation = request.pop("training_file"), request.pop("validation_file", None)
    return {
        **request,
        "training_files": [training],
        "validation_files": [validation] if validation else [],
    }


def _with_one_file(request: dict) -> dict:
    """Only what was known then; of several files the first."""
    training, validation = request["training_files"][0], next(iter(request["validation_files"]), None)
    known = {name: value for name, value in request.items() if name in _KNOWN_BEFORE}
    known["objective"] = known["objective"] or {"name": "sft"}
    return {**known, "training_file": training, "validation_file": validation}


_KNOWN_BEFORE = (
    "base_model", "suffix", "seed", "method", "objective", "epochs", "batch_size", "learning_rate_multiplier",
    "max_length", "overlength", "least_rows", "metadata",
)  # fmt: skip
