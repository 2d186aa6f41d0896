"""All SQL on projects and keys."""

from __future__ import annotations

from sqlalchemy import select

from luthier.control.accounts.tables import KeyRow, ProjectRow
from luthier.control.tenancy import Queries


class AccountQueries(Queries):
    async def projects(self) -> list[ProjectRow]:
        """Every project: they are the owners, so no gate stands before them but the one to this class."""
        return list(await self.session.scalars(select(ProjectRow).order_by(ProjectRow.created_at, ProjectRow.id)))

    async def keys(self) -> list[KeyRow]:
        return list(await self.session.scalars(self.visible(KeyRow).order_by(KeyRow.created_at, KeyRow.id)))

    async def key(self, key_id: str) -> KeyRow | None:
        return await self.session.scalar(self.visible(KeyRow).where(KeyRow.id == key_id))
