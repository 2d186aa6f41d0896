"""Principals, and the visible() gate that every query starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from luthier.control.db import Owned
from luthier.core.pages import NumberedPage

T = TypeVar("T")

SYSTEM_PROJECT = "proj-system"
"""Owner of what belongs to the operator: replicas of the shared pool."""


@dataclass(frozen=True)
class Principal:
    """Who is calling, and the one project whose rows they see. `id` is a key's, for the audit."""

    id: str
    project: str
    sees_all: bool = False


SYSTEM = Principal(id="system", project=SYSTEM_PROJECT, sees_all=True)
"""The reconcilers: they serve every project and act for none."""


class Queries:
    """Base of every domain's SQL: one session, one principal, one gate."""

    def __init__(self, session: AsyncSession, who: Principal) -> None:
        self.session = session
        self.who = who

    def visible(self, table: type[T], *more: Any) -> Select[T]:
        """Select rows of a table that this principal may see; every query starts here.

        `more` are joined tables, filtered alike. In a write session the rows are locked until it ends.
        """
        statement = select(table)
        for one in (table, *more):
            if not issubclass(one, Owned):
                raise TypeError(f"{one.__name__} has no owner")
            if not self.who.sees_all:
                statement = statement.where(one.project_id == self.who.project)
        return statement.with_for_update(of=table) if self.session.info.get("is_write") else statement

    async def count(self, table: type, *where: ColumnElement[bool]) -> int:
        """How many rows of a table there are, of those that the principal may see."""
        rows = self.visible(table).where(*where).subquery()
        return await self.session.scalar(select(func.count()).select_from(rows)) or 0

    async def newest(self, table: type[T], number: int, size: int, *where: ColumnElement[bool]) -> NumberedPage[T]:
        """The page of that number, from 1, with the newest first; ids sort by time."""
        newest = self.visible(table).where(*where).order_by(table.id.desc())  # type: ignore[attr-defined]
        found = list(await self.session.scalars(newest.limit(size).offset((number - 1) * size)))
        return NumberedPage(found, number, size, await self.count(table, *where))
