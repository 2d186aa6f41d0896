"""All SQL on jobs, runs, events and checkpoints."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import update

from luthier.control.jobs.tables import CheckpointRow, EventRow, JobRow, RunRow
from luthier.control.tenancy import Queries
from luthier.core.pages import Page, PageRequest


class JobQueries(Queries):
    async def get(self, job_id: str) -> JobRow | None:
        return await self.session.scalar(self.visible(JobRow).where(JobRow.id == job_id))

    async def is_named(self, model: str) -> bool:
        """Whether a job has that name for its model."""
        return await self.session.scalar(self.visible(JobRow).where(JobRow.model_name == model).limit(1)) is not None

    async def page(self, page: PageRequest) -> Page[JobRow]:
        """Newest first; ids sort by time, so the cursor is an id."""
        return await self._page(JobRow, page)

    async def events(self, job_id: str, page: PageRequest) -> Page[EventRow]:
        """Newest first, without what was superseded."""
        return await self._page(EventRow, page, EventRow.job_id == job_id, EventRow.superseded.is_(False))

    async def checkpoints(self, job_id: str, page: PageRequest) -> Page[CheckpointRow]:
        return await self._page(
            CheckpointRow, page, CheckpointRow.job_id == job_id, CheckpointRow.superseded.is_(False)
        )

    async def in_status(self, statuses: Collection[str]) -> list[JobRow]:
        return list(
            await self.session.scalars(self.visible(JobRow).where(JobRow.status.in_(statuses)).order_by(JobRow.id))
        )

    async def last_run(self, job_id: str) -> RunRow | None:
        runs = self.visible(RunRow).where(RunRow.job_id == job_id).order_by(RunRow.attempt.desc()).limit(1)
        return await self.session.scalar(runs)

    async def supersede(self, job_id: str, *, before_attempt: int, after_step: int) -> None:
        """Mark what earlier attempts told of steps after `after_step`: the new attempt takes them again."""
        for table in (EventRow, CheckpointRow):
            rows = self.visible(table).where(
                table.job_id == job_id, table.attempt < before_attempt, table.step > after_step
            )
            marked = update(table).where(table.id.in_(rows.with_only_columns(table.id))).values(superseded=True)
            await self.session.execute(marked, execution_options={"synchronize_session": False})

    async def _page(self, table, page: PageRequest, *where) -> Page:
        rows = self.visible(table).where(*where)
        if page.after is not None:
            rows = rows.where(table.id < page.after)
        found = list(await self.session.scalars(rows.order_by(table.id.desc()).limit(page.limit + 1)))
        return Page(found[: page.limit], has_more=len(found) > page.limit)
