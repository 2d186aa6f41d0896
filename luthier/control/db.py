"""Engine, sessions and the base of every table; one transaction per request or step.

There are two kinds of session. What a write session read is still true when it writes: SQLite has one writer at a time, from its
first statement (BEGIN IMMEDIATE); elsewhere the rows that it reads through the gate of tenancy.py are locked. No session is open
while tokens flow, files are read or processes start.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    DateTime,
    Double,
    ForeignKey,
    MetaData,
    String,
    TypeDecorator,
    cast,
    event,
    func,
    literal_column,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection, Dialect, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column
from sqlalchemy.sql import ColumnElement


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC. SQLite forgets zones, so they are put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


class Table(DeclarativeBase):
    """Base of every table."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy wants it so)
        datetime: UtcDateTime(),
        dict[str, Any]: JSON().with_variant(JSONB(), "postgresql"),
    }

    id: Mapped[str] = mapped_column(String(64), primary_key=True)


class Owned:
    """A row that belongs to a project: all of them but projects themselves."""

    @declared_attr
    def project_id(cls) -> Mapped[str]:
        return mapped_column(ForeignKey("projects.id"), index=True)


class Leased:
    """A row that one worker at a time may work on; see scheduling/leases.py."""

    lease_token: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[float | None]  # seconds since 1970 by the database's clock


class Database:
    """Sessions on one database, and nudges to whoever waits for its changes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._nudges: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        if make_url(url).get_backend_name() == "sqlite":
            self._writer = _sqlite(url, begin="BEGIN IMMEDIATE")
            self._reader = _sqlite(url, begin="BEGIN")
        else:
            self._writer = self._reader = create_async_engine(url, pool_pre_ping=True, hide_parameters=True)
        self._write = async_sessionmaker(self._writer, expire_on_commit=False, info={"is_write": True})
        self._read = async_sessionmaker(self._reader, expire_on_commit=False)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session that only reads."""
        async with self._read() as session:
            yield session

    @asynccontextmanager
    async def write(self, *nudges: str) -> AsyncIterator[AsyncSession]:
        """A transaction: committed when the block ends, rolled back when it raises. `nudges` are given after the commit."""
        async with self._write.begin() as session:
            yield session
        for topic in nudges:
            self.nudge(topic)

    def nudge(self, topic: str) -> None:
        self._nudges[topic].set()

    async def nudged(self, topic: str, *, within_seconds: float) -> None:
        """Wait for a nudge on that topic, or for the time to pass: a nudge saves waiting, it is never needed."""
        try:
            async with asyncio.timeout(within_seconds):
                await self._nudges[topic].wait()
        except TimeoutError:
            return
        self._nudges[topic].clear()

    async def migrate(self) -> None:
        """Bring the schema to the newest version."""
        from alembic import command
        from alembic.config import Config

        def upgrade(connection: Connection) -> None:
            config = Config()
            config.set_main_option("script_location", "luthier.control:migrations")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

        async with self._writer.begin() as connection:
            await connection.run_sync(upgrade)

    async def close(self) -> None:
        await self._writer.dispose()
        await self._reader.dispose()


def now(session: AsyncSession) -> ColumnElement[float]:
    """The database's own clock, in seconds since 1970: what leases are compared by."""
    if session.get_bind().dialect.name == "sqlite":
        return literal_column("(julianday('now') - 2440587.5) * 86400.0")
    return cast(func.extract("epoch", func.clock_timestamp()), Double)


def _sqlite(url: str, *, begin: str) -> AsyncEngine:
    engine = create_async_engine(url, connect_args={"timeout": 60}, hide_parameters=True)

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late to protect a read before a write
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=60000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def open_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
