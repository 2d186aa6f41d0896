"""The history of a job: its statuses and the events that customers read."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from luthier.control.jobs.lifecycle import TERMINAL, Status, check
from luthier.control.jobs.tables import EventRow, JobRow, RunRow
from luthier.control.jobs.values import Error
from luthier.core import ids
from luthier.core.clock import Clock
from luthier.training import events


class History:
    """The only place where a status changes and where events are appended; the caller commits."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def move(self, session: AsyncSession, row: JobRow, status: Status, message: str | None = None) -> None:
        """Change the status of a job and append the event that says so. The only place where a status changes."""
        check(row.id, Status(row.status), status)
        row.status = status
        if status in TERMINAL or status is Status.PAUSED:
            row.wish = None
        if status in TERMINAL:
            row.finished_at = self.clock.now()
        if status is not Status.RUNNING:
            row.seconds_left = None
        self.tell(session, row, message or _SENTENCES[status], level="error" if status is Status.FAILED else "info")

    def fail(self, session: AsyncSession, row: JobRow, error: Error) -> None:
        row.error_code, row.error_message, row.error_param = error.code, error.message, error.param
        self.move(session, row, Status.FAILED, f"The job failed: {error.message}")

    def tell(
        self,
        session: AsyncSession,
        row: JobRow,
        message: str,
        *,
        level: str = "info",
        kind: str = "message",
        data: dict[str, Any] | None = None,
        run: RunRow | None = None,
        event: events.RunEvent | None = None,
    ) -> None:
        """Append an event, of a run's where one is given. The row is locked, so that numbers follow each other."""
        row.told = (row.told or 0) + 1
        session.add(
            EventRow(
                id=ids.new("ftevent"),
                project_id=row.project_id,
                job_id=row.id,
                number=row.told,
                level=level,
                kind=kind,
                message=message,
                data=data,
                attempt=run.attempt if run else 0,
                step=event.step if event else None,
                superseded=False,
                created_at=event.at if event else self.clock.now(),
            )
        )


_SENTENCES = {
    Status.CHECKING: "The files of the job are being read.",
    Status.QUEUED: "The job is queued.",
    Status.STARTING: "The trainer is being started.",
    Status.RUNNING: "Training has started.",
    Status.PAUSED: "The job is paused.",
    Status.CANCELLING: "The job is being cancelled.",
    Status.SUCCEEDED: "The job has successfully completed.",
    Status.FAILED: "The job failed.",
    Status.CANCELLED: "The job was cancelled.",
}
