"""All SQL on answers that are made in the background."""

from __future__ import annotations

from luthier.control.inference.tables import AsyncCompletionRow
from luthier.control.tenancy import Queries


class AsyncCompletionQueries(Queries):
    async def get(self, completion_id: str) -> AsyncCompletionRow | None:
        return await self.session.scalar(self.visible(AsyncCompletionRow).where(AsyncCompletionRow.id == completion_id))

    async def count_pending(self) -> int:
        return await self.count(AsyncCompletionRow, AsyncCompletionRow.status == "processing")

    async def forget(self, row: AsyncCompletionRow) -> None:
        await self.session.delete(row)
