"""Reads files that were uploaded and not read yet."""

from __future__ import annotations

import asyncio

from luthier.control.datasets.inspection import inspect
from luthier.control.datasets.queries import FileQueries
from luthier.control.datasets.tables import FileRow
from luthier.control.db import Database
from luthier.control.scheduling.leases import Lease, apply
from luthier.control.scheduling.reconciler import Reconciler
from luthier.control.tenancy import SYSTEM
from luthier.storage import Storage


class Inspector(Reconciler[FileRow]):
    topic = "files"

    def __init__(self, db: Database, storage: Storage) -> None:
        super().__init__(db)
        self.storage = storage

    def table(self) -> type[FileRow]:
        return FileRow

    def due(self) -> list:
        return [FileRow.status == "uploaded", FileRow.deleted_at.is_(None)]

    async def work(self, lease: Lease[FileRow]) -> None:
        async with self.db.read() as session:
            row = await FileQueries(session, SYSTEM).get(lease.id)
        if row is None:
            return
        report = await asyncio.to_thread(inspect, self.storage, row.key)
        async with apply(self.db, lease, "jobs") as (_, row):
            row.report = report.model_dump(mode="json")
            row.status = "processed" if report.fit else "error"
        self.log.info("file read", file=lease.id, rows=report.rows, problems=sum(report.counts.values()))
