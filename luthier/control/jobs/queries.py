"""All SQL on jobs, runs, events and checkpoints."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, type_coerce, update
from sqlalchemy.dialects.postgresql import JSONB

from luthier.control.jobs.lifecycle import ACTIVE
from luthier.control.jobs.tables import CheckpointRow, EventRow, JobRow, RunRow
from luthier.control.tenancy import Queries
from luthier.core.pages import NumberedPage, Page, PageRequest


class JobQueries(Queries):
    async def get(self, job_id: str) -> JobRow | None:
        return await self.session.scalar(self.visible(JobRow).where(JobRow.id == job_id, _IS_THERE))

    async def is_named(self, model: str) -> bool:
        """Whether a job, be it deleted, has that name for its model."""
        return await self.session.scalar(self.visible(JobRow).where(JobRow.model_name == model).limit(1)) is not None

    async def page(
        self, page: PageRequest, *, metadata: dict[str, str] | None = None, without_metadata: bool = False
    ) -> Page[JobRow]:
        """Newest first; ids sort by time, so the cursor is an id."""
        where = [self._has_pair(key, value) for key, value in (metadata or {}).items()]
        if without_metadata:
            asked = JobRow.request["metadata"].as_string()
            where.append(or_(asked.is_(None), asked == "{}"))
        return await self._page(JobRow, page, _IS_THERE, *where)

    async def numbered(self, number: int, size: int, *, base_model: str | None) -> NumberedPage[JobRow]:
        """Newest first."""
        where = [] if base_model is None else [JobRow.base_model == base_model]
        return await self.newest(JobRow, number, size, _IS_THERE, *where)

    async def events(self, job_id: str, page: PageRequest) -> Page[EventRow]:
        """Newest first, without what was superseded."""
        return await self._page(EventRow, page, EventRow.job_id == job_id, EventRow.superseded.is_(False))

    async def events_from(self, job_id: str, number: int, most: int) -> list[EventRow]:
        """Events from that number on, in order, with what was superseded."""
        rows = self.visible(EventRow).where(
            EventRow.job_id == job_id, EventRow.number >= number, EventRow.number < number + most
        )
        return list(await self.session.scalars(rows.order_by(EventRow.number)))

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

    async def runs_alive(self) -> list[tuple[RunRow, dict[str, Any]]]:
        """Runs that have not ended of jobs that have a process, each with its job's spec."""
        runs = self.visible(RunRow).join(JobRow, JobRow.id == RunRow.job_id).add_columns(JobRow.spec)
        alive = runs.where(RunRow.ended_at.is_(None), JobRow.status.in_(ACTIVE)).order_by(RunRow.id)
        return [(run, spec) for run, spec in await self.session.execute(alive)]

    async def supersede(self, job_id: str, *, before_attempt: int, after_step: int) -> None:
        """Mark what earlier attempts told of steps after `after_step`: the new attempt takes them again."""
        for table in (EventRow, CheckpointRow):
            rows = self.visible(table).where(
                table.job_id == job_id, table.attempt < before_attempt, table.step > after_step
            )
            marked = update(table).where(table.id.in_(rows.with_only_columns(table.id))).values(superseded=True)
            await self.session.execute(marked, execution_options={"synchronize_session": False})

    async def supersede_checkpoint(self, job_id: str, step: int, *, before_attempt: int) -> None:
        """Mark what earlier attempts saved of a step: the new attempt has saved it again, and knows no less of it."""
        rows = self.visible(CheckpointRow).where(
            CheckpointRow.job_id == job_id, CheckpointRow.attempt < before_attempt, CheckpointRow.step == step
        )
        marked = update(CheckpointRow).where(CheckpointRow.id.in_(rows.with_only_columns(CheckpointRow.id)))
        await self.session.execute(marked.values(superseded=True), execution_options={"synchronize_session": False})

    def _has_pair(self, key: str, value: str) -> ColumnElement[bool]:
        """Whether a job's metadata has that pair; a key may be any text, so it is not written into a path."""
        if self.session.get_bind().dialect.name == "postgresql":
            return type_coerce(JobRow.request, JSONB).contains({"metadata": {key: value}})
        pairs = func.json_each(JobRow.request, "$.metadata").table_valued("key", "atom")
        return select(pairs.c.key).where(pairs.c.key == key, pairs.c.atom == value).exists()

    async def _page(self, table, page: PageRequest, *where) -> Page:
        rows = self.visible(table).where(*where)
        if page.after is not None:
            rows = rows.where(table.id < page.after)
        found = list(await self.session.scalars(rows.order_by(table.id.desc()).limit(page.limit + 1)))
        return Page(found[: page.limit], has_more=len(found) > page.limit)


_IS_THERE = JobRow.deleted_at.is_(None)
