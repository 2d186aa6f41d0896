"""All SQL on models."""

from __future__ import annotations

from luthier.control.catalog.tables import ModelRow
from luthier.control.tenancy import Queries


class ModelQueries(Queries):
    async def named(self, name: str) -> ModelRow | None:
        return await self.session.scalar(
            self.visible(ModelRow).where(ModelRow.name == name, ModelRow.deleted_at.is_(None))
        )

    async def fine_tuned(self) -> list[ModelRow]:
        rows = self.visible(ModelRow).where(ModelRow.kind == "fine_tuned", ModelRow.deleted_at.is_(None))
        return list(await self.session.scalars(rows.order_by(ModelRow.id)))
