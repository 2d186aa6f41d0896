"""Claims on rows: a worker takes a row for a while, with a token, and applies its work only while the token is still there.

Work is done outside any transaction, and its lease is renewed while it goes on. If a worker dies its lease runs out, another one
claims the row, and what the first one might still bring is stale and dropped. Times are the database's own.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from sqlalchemy import ColumnElement, Select, Update, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped

from luthier.control.db import Database, now
from luthier.control.tenancy import SYSTEM, Queries
from luthier.core import logs

log = logs.get("leases")


class Claimable(Protocol):
    id: Mapped[str]
    lease_token: Mapped[str | None]
    lease_until: Mapped[float | None]


R = TypeVar("R", bound=Claimable)

LEASE_SECONDS = 8.0
"""How long the rows of a worker that died stay untouched."""


@dataclass(frozen=True)
class Lease(Generic[R]):
    table: type[R]
    id: str
    token: str


class Stale(Exception):
    """The lease ran out and somebody else has the row; what was done under it must be dropped."""


async def claim(
    db: Database, table: type[R], *due: ColumnElement[bool], limit: int = 16, seconds: float = LEASE_SECONDS
) -> list[Lease[R]]:
    """Take up to `limit` rows that are due and that nobody holds, the longest unlooked at first; each goes to one worker."""

    def free(session: AsyncSession) -> Select[str]:
        rows = Queries(session, SYSTEM).visible(table).with_only_columns(table.id)
        unheld = or_(table.lease_until.is_(None), table.lease_until <= now(session))
        return rows.where(*due, unheld).order_by(table.lease_until.asc().nulls_first(), table.id).limit(limit)

    async with db.read() as session:  # most looks find nothing, and should not take the write lock for it
        if await session.scalar(free(session)) is None:
            return []
    token = secrets.token_hex(16)
    async with db.write() as session:
        rows = free(session).with_for_update(skip_locked=True)
        taken = update(table).where(table.id.in_(rows)).values(lease_token=token, lease_until=now(session) + seconds)
        rows = await session.scalars(taken.returning(table.id), execution_options={"synchronize_session": False})
        return [Lease(table, row, token) for row in sorted(rows)]


@asynccontextmanager
async def apply(
    db: Database,
    lease: Lease[R],
    *nudges: str,
    first: Callable[[AsyncSession], Awaitable[object]] | None = None,
) -> AsyncIterator[tuple[AsyncSession, R]]:
    """A transaction on the row that was claimed, which also gives it back. Raises Stale when it is no longer ours.

    `first` reads, and so locks, what others lock before they lock such a row: in one order nobody waits for each other.
    """
    async with db.write(*nudges) as session:
        if first is not None:
            await first(session)
        row = await session.scalar(
            Queries(session, SYSTEM)
            .visible(lease.table)
            .where(lease.table.id == lease.id, lease.table.lease_token == lease.token)
            .with_for_update()
        )
        if row is None:
            raise Stale(lease.id)
        yield session, row
        row.lease_token = None
        row.lease_until = (await session.execute(select(now(session)))).scalar_one()  # looked at now: others come first


async def release(db: Database, lease: Lease[R], *, again_after_seconds: float = 0) -> None:
    """Give a row back without a change, if it is still ours; nobody need look at it again before that time is over."""
    async with db.write() as session:
        await session.execute(_ours(lease).values(lease_token=None, lease_until=now(session) + again_after_seconds))


@asynccontextmanager
async def renewed(db: Database, lease: Lease[R], *, seconds: float = LEASE_SECONDS) -> AsyncIterator[None]:
    """Keep a lease alive while the block runs, however long that takes."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(seconds / 3)
            try:
                async with db.write() as session:
                    await session.execute(_ours(lease).values(lease_until=now(session) + seconds))
            except SQLAlchemyError:  # the next round may do better; else the lease runs out, and `apply` says so
                log.exception("a lease could not be renewed", row=lease.id)

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)


def _ours(lease: Lease[R]) -> Update:
    return update(lease.table).where(lease.table.id == lease.id, lease.table.lease_token == lease.token)
