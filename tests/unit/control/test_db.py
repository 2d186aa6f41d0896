"""Both databases keep what a session promises, and hold exactly the schema that the tables describe."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select
from sqlalchemy.exc import IntegrityError

import luthier.control.tables as tables
from luthier.control.accounts.tables import KeyRow, ProjectRow
from luthier.control.db import Database, Leased, Owned, Table, now
from luthier.control.tenancy import SYSTEM, SYSTEM_PROJECT, Principal, Queries
from tests.unit.control.conftest import ADA, BOB, add_projects, make_schema


def test_every_row_but_a_project_belongs_to_a_project() -> None:
    kinds = {mapper.class_ for mapper in Table.registry.mappers}
    assert kinds == {getattr(tables, name) for name in tables.__all__}
    for kind in kinds - {ProjectRow}:
        assert issubclass(kind, Owned)
        column = kind.__table__.c.project_id
        assert not column.nullable
        assert [key.target_fullname for key in column.foreign_keys] == ["projects.id"]


def _alembic(direction: str, target: str):
    def go(connection) -> None:
        config = Config()
        config.set_main_option("script_location", "luthier.control:migrations")
        config.attributes["connection"] = connection
        getattr(command, direction)(config, target)

    return go


def _differences(connection) -> list:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return compare_metadata(context, Table.metadata)


async def test_the_migrations_make_the_tables_and_undo_them(database_url: str, postgres: str, tmp_path: Path) -> None:
    db = Database(f"sqlite+aiosqlite:///{tmp_path}/fresh.db")
    if "postgresql" in database_url:
        db = Database(await make_schema(postgres, "migrations"))
    await db.migrate()
    await db.migrate()  # again changes nothing
    async with db._writer.begin() as connection:
        assert await connection.run_sync(_differences) == []
        leased = {one.__tablename__ for one in Leased.__subclasses__()}
        assert leased == {"async_completions", "deployments", "file_lengths", "files", "jobs", "replicas", "uploads"}
        await connection.run_sync(_alembic("downgrade", "base"))
        left = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        assert left == ["alembic_version"]
        await connection.run_sync(_alembic("upgrade", "head"))
    await db.close()


async def test_a_session_that_fails_leaves_nothing(database: Database) -> None:
    async def fail() -> None:
        async with database.write() as session:
            session.add(ProjectRow(id="proj-1", name="x", created_at=datetime.now(UTC)))
            await session.flush()
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        await fail()
    async with database.read() as session:
        assert list(await session.scalars(select(ProjectRow))) == []


async def test_a_row_of_no_project_is_refused(database: Database) -> None:
    row = KeyRow(id="k", project_id="proj-none", name="x", sealed_secret=b"", created_at=datetime.now(UTC))
    with pytest.raises(IntegrityError):
        async with database.write() as session:
            session.add(row)


async def test_ten_transactions_that_read_and_then_write_all_count(database: Database) -> None:
    async with database.write() as session:
        session.add(ProjectRow(id=SYSTEM_PROJECT, name="system", created_at=datetime.now(UTC)))
        await session.flush()
        row = KeyRow(id="k", project_id=SYSTEM_PROJECT, name="0", sealed_secret=b"", created_at=datetime.now(UTC))
        session.add(row)

    async def count() -> None:
        async with database.write() as session:
            key = await session.scalar(Queries(session, SYSTEM).visible(KeyRow).where(KeyRow.id == "k"))
            assert key is not None
            before = int(key.name)
            await asyncio.sleep(0.01)  # long enough that all of them are inside at once
            key.name = str(before + 1)

    await asyncio.gather(*(count() for _ in range(10)))
    async with database.read() as session:
        assert await session.scalar(select(KeyRow.name)) == "10"


async def test_moments_come_back_in_utc_whatever_zone_they_were_said_in(database: Database) -> None:
    said = datetime(2030, 6, 1, 8, 30, 0, 123456, tzinfo=timezone(timedelta(hours=8)))
    async with database.write() as session:
        session.add(ProjectRow(id="proj-1", name="x", created_at=said))
    async with database.read() as session:
        kept = await session.scalar(select(ProjectRow.created_at))
    assert kept == said
    assert kept.utcoffset() == timedelta(0)


async def test_the_databases_clock_counts_seconds_since_1970(database: Database) -> None:
    async with database.read() as session:
        seconds = float(await session.scalar(select(now(session))))
    assert abs(seconds - datetime.now(UTC).timestamp()) < 60


async def test_a_nudge_ends_a_wait_and_only_after_the_commit(database: Database) -> None:
    async with database.write("jobs"):
        await database.nudged("jobs", within_seconds=0.01)
        waiting = asyncio.create_task(database.nudged("jobs", within_seconds=60))
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 30)


async def test_the_gate_shows_a_principal_its_own_project_and_the_system_all(database: Database) -> None:
    await add_projects(database)
    async with database.write() as session:
        for who in (ADA, BOB):
            key = KeyRow(id=who.id, project_id=who.project, name="", sealed_secret=b"", created_at=datetime.now(UTC))
            session.add(key)

    async def seen(who: Principal) -> set[str]:
        async with database.read() as session:
            return {row.id for row in await session.scalars(Queries(session, who).visible(KeyRow))}

    assert await seen(ADA) == {"key-ada"}
    assert await seen(BOB) == {"key-bob"}
    assert await seen(SYSTEM) == {"key-ada", "key-bob"}
    assert await seen(Principal("key-eve", "proj-eve")) == set()


async def test_the_gate_filters_joined_tables_and_refuses_a_table_without_an_owner(database: Database) -> None:
    async with database.read() as session:
        queries = Queries(session, ADA)
        joined = str(queries.visible(tables.EventRow, tables.JobRow))
        assert "job_events.project_id =" in joined
        assert "jobs.project_id =" in joined
        with pytest.raises(TypeError, match="ProjectRow has no owner"):
            queries.visible(ProjectRow)
