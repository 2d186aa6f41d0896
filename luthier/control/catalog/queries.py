"""All SQL on models."""

from __future__ import annotations

from luthier.control.catalog.tables import ModelRow
from luthier.control.tenancy import Queries


class ModelQueries(Queries):
    async def named(self, name: str) -> ModelRow | None:
        return await self.session.scalar(
            self.visible(ModelRow).where(ModelRow.name == name, ModelRow.deleted_at.is_(None))
        )

    async def fine_tuned(self, *, limit: int | None = None, offset: int = 0) -> list[ModelRow]:
        """Oldest first."""
        rows = self.visible(ModelRow).where(*_TUNED).order_by(ModelRow.id)
        return list(await self.session.scalars(rows.limit(limit).offset(offset)))

    async def count_fine_tuned(self) -> int:
        return await self.count(ModelRow, *_TUNED)


_TUNED = (ModelRow.kind == "fine_tuned", ModelRow.deleted_at.is_(None))
