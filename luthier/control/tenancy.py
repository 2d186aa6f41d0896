"""Principals, and the visible() gate that every query starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from luthier.control.db import Owned

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
