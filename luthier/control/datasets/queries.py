"""All SQL on files."""

from __future__ import annotations

from luthier.control.datasets.tables import FileRow
from luthier.control.tenancy import Queries
from luthier.core.pages import Page, PageRequest


class FileQueries(Queries):
    async def get(self, file_id: str) -> FileRow | None:
        return await self.session.scalar(
            self.visible(FileRow).where(FileRow.id == file_id, FileRow.deleted_at.is_(None))
        )

    async def page(self, page: PageRequest, *, purpose: str | None, newest_first: bool) -> Page[FileRow]:
        """Ids sort by time, so the cursor is an id."""
        rows = self.visible(FileRow).where(FileRow.deleted_at.is_(None))
        if purpose is not None:
            rows = rows.where(FileRow.purpose == purpose)
        if page.after is not None:
            rows = rows.where(FileRow.id < page.after if newest_first else FileRow.id > page.after)
        rows = rows.order_by(FileRow.id.desc() if newest_first else FileRow.id).limit(page.limit + 1)
        found = list(await self.session.scalars(rows))
        return Page(found[: page.limit], has_more=len(found) > page.limit)
