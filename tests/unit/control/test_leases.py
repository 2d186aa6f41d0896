"""A row goes to one worker at a time, comes free when its worker is lost, and takes nothing from a worker that was."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from luthier.control.datasets.tables import FileRow
from luthier.control.db import Database, now
from luthier.control.scheduling.leases import Lease, Stale, apply, claim, release, renewed
from tests.unit.control.conftest import ADA, add_projects


@pytest.fixture
async def files(database: Database) -> Database:
    """A database with 200 files that wait."""
    await add_projects(database)
    async with database.write() as session:
        session.add_all(
            FileRow(
                id=f"file-{number:03}", project_id=ADA.project, filename="f", purpose="fine-tune", bytes=0, sha256="",
                key="", status="uploaded", report=None, created_at=datetime.now(UTC), deleted_at=None,
            )
            for number in range(200)
        )  # fmt: skip
    return database


async def expire(db: Database, lease: Lease[FileRow]) -> None:
    async with db.write() as session:
        await session.execute(update(FileRow).where(FileRow.id == lease.id).values(lease_until=now(session) - 1))


async def test_six_workers_take_every_row_exactly_once(files: Database) -> None:
    taken: Counter[str] = Counter()

    async def work() -> None:
        db = Database(files.url)
        while leases := await claim(db, FileRow, FileRow.status == "uploaded", limit=7):
            taken.update(lease.id for lease in leases)
        await db.close()

    await asyncio.gather(*(work() for _ in range(6)))
    assert sorted(taken) == [f"file-{number:03}" for number in range(200)]
    assert set(taken.values()) == {1}


async def test_rows_are_taken_oldest_first_when_they_are_due(files: Database) -> None:
    leases = await claim(files, FileRow, FileRow.id > "file-100", limit=3)
    assert [lease.id for lease in leases] == ["file-101", "file-102", "file-103"]
    assert await claim(files, FileRow, FileRow.status == "processed") == []


async def test_a_held_row_is_nobody_elses_until_it_is_given_back(files: Database) -> None:
    due = FileRow.id == "file-000"
    [lease] = await claim(files, FileRow, due)
    assert await claim(files, FileRow, due) == []
    await release(files, lease)
    [again] = await claim(files, FileRow, due)
    assert again.token != lease.token
    async with apply(files, again) as (_, row):
        row.status = "processed"
    assert len(await claim(files, FileRow, due)) == 1


async def test_an_expired_lease_can_be_taken_and_the_first_workers_work_is_dropped(files: Database) -> None:
    due = FileRow.id == "file-000"
    [lost] = await claim(files, FileRow, due)
    await expire(files, lost)
    [newer] = await claim(files, FileRow, due)
    with pytest.raises(Stale):
        async with apply(files, lost) as (_, row):
            row.status = "error"
    await release(files, lost)  # gives back nothing that is not its own
    async with apply(files, newer) as (_, row):
        assert row.status == "uploaded"
        row.status = "processed"


async def test_a_worker_that_was_slow_but_whom_nobody_replaced_may_still_apply(files: Database) -> None:
    [lease] = await claim(files, FileRow, FileRow.id == "file-000")
    await expire(files, lease)
    async with apply(files, lease) as (_, row):
        row.status = "processed"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite locks no rows
async def test_what_is_locked_first_is_locked_while_the_row_is_still_free(files: Database) -> None:
    [lease] = await claim(files, FileRow, FileRow.id == "file-000")
    free: list[str] = []

    async def first(session: AsyncSession) -> None:
        async with files.write() as other:
            row = select(FileRow.id).where(FileRow.id == lease.id).with_for_update(nowait=True)
            free.extend(await other.scalars(row))

    async with apply(files, lease, first=first):
        assert free == [lease.id]


async def test_a_lease_is_applied_once(files: Database) -> None:
    [lease] = await claim(files, FileRow, FileRow.id == "file-000")
    async with apply(files, lease):
        pass
    with pytest.raises(Stale):
        async with apply(files, lease):
            pass


async def test_a_lease_outlives_its_time_while_the_work_goes_on(files: Database) -> None:
    [lease] = await claim(files, FileRow, limit=1, seconds=3)
    async with renewed(files, lease, seconds=3):
        await asyncio.sleep(4)
        taken = await claim(files, FileRow, limit=500)
    assert lease.id not in [other.id for other in taken]
