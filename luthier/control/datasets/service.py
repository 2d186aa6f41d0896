"""Files: taken in, read once, listed, given back, deleted; and whether one is ready to be trained on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from luthier.control import audit
from luthier.control.datasets.inspection import DatasetReport
from luthier.control.datasets.queries import FileQueries
from luthier.control.datasets.tables import FileRow
from luthier.control.db import Database
from luthier.control.tenancy import Principal
from luthier.core import ids
from luthier.core.clock import Clock
from luthier.core.errors import DatasetInvalid, FileNotFound, InvalidParameter
from luthier.core.pages import Page, PageRequest
from luthier.storage import Storage

PURPOSES = ("fine-tune",)


@dataclass(frozen=True)
class File:
    id: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    key: str
    status: str
    report: DatasetReport | None
    created_at: datetime


class Datasets:
    def __init__(self, db: Database, storage: Storage, clock: Clock) -> None:
        self.db = db
        self.storage = storage
        self.clock = clock

    async def add_file(self, who: Principal, filename: str, purpose: str, content: AsyncIterator[bytes]) -> File:
        """Store a file whole, then add its row; it is read in the background."""
        if purpose not in PURPOSES:
            raise InvalidParameter("purpose", f"must be {' or '.join(map(repr, PURPOSES))}, got {purpose!r}")
        file_id = ids.new("file")
        stored = await self.storage.write_stream(f"files/{who.project}/{file_id}", content)
        row = FileRow(
            id=file_id,
            project_id=who.project,
            filename=filename.replace("\0", "")[:1024],  # a character that PostgreSQL cannot keep
            purpose=purpose,
            bytes=stored.size,
            sha256=stored.sha256,
            key=stored.key,
            status="uploaded",
            report=None,
            created_at=self.clock.now(),
            deleted_at=None,
        )
        async with self.db.write("files") as session:
            session.add(row)
            audit.note(session, who, "file.created", file_id, self.clock)
        return _file(row)

    async def get(self, who: Principal, file_id: str) -> File:
        async with self.db.read() as session:
            return _file(_found(await FileQueries(session, who).get(file_id), file_id))

    async def list(self, who: Principal, page: PageRequest, *, purpose: str | None, newest_first: bool) -> Page[File]:
        async with self.db.read() as session:
            rows = await FileQueries(session, who).page(page, purpose=purpose, newest_first=newest_first)
        return Page([_file(row) for row in rows.items], rows.has_more)

    async def content(self, who: Principal, file_id: str) -> AsyncIterator[bytes]:
        """The file's bytes, streamed. Raises FileNotFound before the first of them."""
        return self.storage.stream_async((await self.get(who, file_id)).key)

    async def delete(self, who: Principal, file_id: str) -> None:
        """Forget a file. Its bytes stay while a job that was made with it may still read them."""
        async with self.db.write() as session:
            row = _found(await FileQueries(session, who).get(file_id), file_id)
            row.deleted_at = self.clock.now()
            audit.note(session, who, "file.deleted", file_id, self.clock)

    async def ready(self, who: Principal, file_id: str, *, param: str, wants: str, at_least: int = 1) -> File | None:
        """The file, when it can be trained on; None while it has not been read yet.

        Raises FileNotFound, and DatasetInvalid with every problem; `param` is the caller's name for this file.
        """
        async with self.db.read() as session:
            row = await FileQueries(session, who).get(file_id)
        if row is None:
            raise FileNotFound(
                f"There is no file {file_id!r}.", param=param, hint="Upload it first, with purpose fine-tune."
            )
        file = _file(row)
        if file.report is None:
            return None
        if not file.report.fit:
            problems = [(problem.line, problem.message) for problem in file.report.problems]
            raise DatasetInvalid(
                f"The file {file.filename!r} cannot be trained on: {file.report.summary}", problems, param=param
            )
        if file.report.kind != wants:
            raise DatasetInvalid(
                f"The file {file.filename!r} holds {file.report.kind} rows; this job wants {wants}.", [], param=param
            )
        if file.report.rows < at_least:
            raise DatasetInvalid(
                f"The file {file.filename!r} has {file.report.rows} rows; at least {at_least} are needed.",
                [],
                param=param,
            )
        return file


def _found(row: FileRow | None, file_id: str) -> FileRow:
    if row is None:
        raise FileNotFound(f"There is no file {file_id!r}.")
    return row


def _file(row: FileRow) -> File:
    return File(
        id=row.id,
        filename=row.filename,
        purpose=row.purpose,
        bytes=row.bytes,
        sha256=row.sha256,
        key=row.key,
        status=row.status,
        report=DatasetReport.model_validate(row.report) if row.report else None,
        created_at=row.created_at,
    )
