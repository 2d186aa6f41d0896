"""Reads files that were uploaded, counts their tokens; removes expired files, and the parts of uploads that have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import or_

from luthier.control.datasets.queries import FileQueries, LengthsQueries, UploadQueries, is_there
from luthier.control.datasets.report import DatasetReport, of_problem
from luthier.control.datasets.service import Datasets, counting, key_of
from luthier.control.datasets.tables import FileRow, LengthsRow, UploadRow
from luthier.control.datasets.tasks import Task
from luthier.control.datasets.uploads import folder_of
from luthier.control.datasets.workshop import Workshop, WorkStopped
from luthier.control.db import Database
from luthier.control.jobs.service import CHECKING
from luthier.control.scheduling.leases import Lease, apply, release
from luthier.control.scheduling.reconciler import Reconciler
from luthier.control.tenancy import SYSTEM, Principal
from luthier.core.clock import Clock
from luthier.core.errors import LuthierError, Unavailable
from luthier.records.problems import Problem
from luthier.storage import Storage

_OURS = "A fault of the server's own, again and again; its log has the rest."


class Inspector(Reconciler[FileRow]):
    topic = "files"

    def __init__(
        self,
        db: Database,
        workshop: Workshop,
        clock: Clock,
        *,
        image_hosts: Sequence[str] = (),
        advised_rows: int | None = None,
    ) -> None:
        super().__init__(db)
        self.workshop = workshop
        self.clock = clock
        self.options = {"image_hosts": list(image_hosts), "advised_rows": advised_rows}

    async def run(self) -> None:
        await self.run_side_by_side()

    def table(self) -> type[FileRow]:
        return FileRow

    def due(self) -> list:
        return [FileRow.status == "uploaded", is_there(self.clock.now())]

    async def work(self, lease: Lease[FileRow]) -> None:
        async with self.db.read() as session:
            row = await FileQueries(session, SYSTEM, self.clock.now()).get(lease.id)
        if row is None:
            return
        options = {"category": row.category, "pins": f"images/{row.project_id}", **self.options}
        task = Task(kind="inspect", key=row.key, size=row.bytes, options=options)
        try:
            report = DatasetReport.model_validate(await self.workshop.do(task))
        except LuthierError as stopped:
            if may_pass(stopped):
                raise
            report = _stopped(stopped.message)
        await self._apply(lease, report)

    async def give_up(self, lease: Lease[FileRow], fault: Exception) -> bool:
        await self._apply(lease, _stopped(_OURS))
        return True

    async def _apply(self, lease: Lease[FileRow], report: DatasetReport) -> None:
        async with apply(self.db, lease, CHECKING) as (_, row):
            row.report = report.model_dump(mode="json")
            row.status = "processed" if report.fit else "error"
        self.log.info("file read", file=lease.id, rows=report.rows, problems=sum(report.counts.values()))


class TokenCounter(Reconciler[LengthsRow]):
    """Counts the tokens of files that somebody asked about with a model."""

    topic = "lengths"

    def __init__(self, db: Database, workshop: Workshop, clock: Clock) -> None:
        super().__init__(db)
        self.workshop = workshop
        self.clock = clock

    async def run(self) -> None:
        await self.run_side_by_side()

    def table(self) -> type[LengthsRow]:
        return LengthsRow

    def due(self) -> list:
        return [LengthsRow.status == "counting"]

    async def work(self, lease: Lease[LengthsRow]) -> None:
        async with self.db.read() as session:
            row = await LengthsQueries(session, SYSTEM).get(lease.id)
            files = FileQueries(session, SYSTEM, self.clock.now())
            file = await files.get(row.file_id) if row is not None else None
        if row is None:
            return
        status = "error"
        if file is None or file.report is None:
            result = {"why": "The file was deleted, or has expired."}
        else:
            try:
                result = await self.workshop.do(counting(row, file.key, file.bytes, file.report["format"]))
                status = "counted"
            except LuthierError as refused:
                if may_pass(refused):
                    raise
                result = {"why": refused.text, "again": isinstance(refused, WorkStopped)}
        async with apply(self.db, lease, CHECKING) as (_, row):
            row.result, row.status = result, status

    async def give_up(self, lease: Lease[LengthsRow], fault: Exception) -> bool:
        async with apply(self.db, lease, CHECKING) as (_, row):
            row.result, row.status = {"why": _OURS, "again": True}, "error"
        return True


def _stopped(why: str) -> DatasetReport:
    return of_problem(Problem(code="check_stopped", found=why.rstrip(".")))


def may_pass(error: LuthierError) -> bool:
    """Whether the same work may go well another time; what went over a limit would do so again."""
    return isinstance(error, Unavailable) and not isinstance(error, WorkStopped)


class FileSweeper(Reconciler[FileRow]):
    """Removes files whose time is over. Nobody finds them any more by then, so it need not hurry."""

    topic = "expiry"
    every_seconds = 30.0

    def __init__(self, db: Database, datasets: Datasets, clock: Clock) -> None:
        super().__init__(db)
        self.datasets = datasets
        self.clock = clock

    def table(self) -> type[FileRow]:
        return FileRow

    def due(self) -> list:
        return [FileRow.expires_at <= self.clock.now(), FileRow.deleted_at.is_(None)]

    async def work(self, lease: Lease[FileRow]) -> None:
        await self.datasets.forget_lengths(SYSTEM, lease.id)
        async with apply(self.db, lease) as (session, row):
            self.datasets.remove(session, Principal(SYSTEM.id, row.project_id), row, "file.expired")
        self.log.info("file expired", file=lease.id)


class UploadCleaner(Reconciler[UploadRow]):
    """Parts go at once when their upload ends, and once more a while later: one may have been on its way just then."""

    topic = "uploads"
    every_seconds = 30.0
    again_after = timedelta(minutes=10)

    def __init__(self, db: Database, storage: Storage, clock: Clock) -> None:
        super().__init__(db)
        self.storage = storage
        self.clock = clock

    def table(self) -> type[UploadRow]:
        return UploadRow

    def due(self) -> list:
        has_ended = or_(UploadRow.status != "pending", UploadRow.expires_at <= self.clock.now())
        return [UploadRow.cleared_at.is_(None), has_ended]

    async def work(self, lease: Lease[UploadRow]) -> None:
        async with self.db.read() as session:
            row = await UploadQueries(session, SYSTEM).get(lease.id)
        if row is None:
            return
        if row.status == "pending":
            async with apply(self.db, lease, "uploads") as (_, row):
                row.status = "expired"
                row.ended_at = self.clock.now()
            self.log.info("upload expired", upload=lease.id)
            return
        await asyncio.to_thread(self.storage.delete, folder_of(row.project_id, row.id))
        if row.status != "completed" and row.file_id is not None:  # what a call to complete it left behind
            await asyncio.to_thread(self.storage.delete, key_of(row.project_id, row.file_id))
        ended_at = row.ended_at or row.expires_at
        if self.clock.now() < ended_at + self.again_after:
            await release(self.db, lease, again_after_seconds=self.again_after.total_seconds())
            return
        async with apply(self.db, lease) as (session, row):
            await UploadQueries(session, SYSTEM).forget_parts(lease.id)
            row.cleared_at = self.clock.now()
