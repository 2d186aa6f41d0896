"""All SQL on files, the lengths of their rows, and uploads."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, and_, or_
from sqlalchemy.ext.asyncio import AsyncSession

from luthier.control.datasets.tables import FileRow, LengthsRow, UploadPartRow, UploadRow
from luthier.control.tenancy import Principal, Queries
from luthier.core.pages import NumberedPage, Page, PageRequest


class FileQueries(Queries):
    """What there is `at` that moment: a file that was deleted or has expired is found by none of these."""

    def __init__(self, session: AsyncSession, who: Principal, at: datetime) -> None:
        super().__init__(session, who)
        self._is_there = is_there(at)

    async def get(self, file_id: str) -> FileRow | None:
        return await self.session.scalar(self.visible(FileRow).where(FileRow.id == file_id, self._is_there))

    async def page(self, page: PageRequest, *, purpose: str | None, newest_first: bool) -> Page[FileRow]:
        """Ids sort by time, so the cursor is an id."""
        rows = self.visible(FileRow).where(self._is_there)
        if purpose is not None:
            rows = rows.where(FileRow.purpose == purpose)
        if page.after is not None:
            rows = rows.where(FileRow.id < page.after if newest_first else FileRow.id > page.after)
        rows = rows.order_by(FileRow.id.desc() if newest_first else FileRow.id).limit(page.limit + 1)
        found = list(await self.session.scalars(rows))
        return Page(found[: page.limit], has_more=len(found) > page.limit)

    async def numbered(self, number: int, size: int) -> NumberedPage[FileRow]:
        """Newest first."""
        return await self.newest(FileRow, number, size, self._is_there)

    async def children(self, file_id: str) -> list[FileRow]:
        """Files that were made from this one, oldest first."""
        rows = self.visible(FileRow).where(FileRow.parent_id == file_id, self._is_there)
        return list(await self.session.scalars(rows.order_by(FileRow.id)))


class LengthsQueries(Queries):
    async def of(self, file_id: str, weights: str, renderer_sha256: str, turn_weights: str) -> LengthsRow | None:
        """What was counted of a file with the tokenizer of that model, as that renderer writes it."""
        rows = self.visible(LengthsRow).where(
            LengthsRow.file_id == file_id,
            LengthsRow.weights == weights,
            LengthsRow.renderer_sha256 == renderer_sha256,
            LengthsRow.turn_weights == turn_weights,
        )
        return await self.session.scalar(rows)

    async def all_of(self, file_id: str) -> list[LengthsRow]:
        """What was counted of a file, by whatever model."""
        return list(await self.session.scalars(self.visible(LengthsRow).where(LengthsRow.file_id == file_id)))

    async def get(self, lengths_id: str) -> LengthsRow | None:
        return await self.session.scalar(self.visible(LengthsRow).where(LengthsRow.id == lengths_id))


class UploadQueries(Queries):
    async def get(self, upload_id: str) -> UploadRow | None:
        return await self.session.scalar(self.visible(UploadRow).where(UploadRow.id == upload_id))

    async def parts(self, upload_id: str) -> list[UploadPartRow]:
        rows = self.visible(UploadPartRow).where(UploadPartRow.upload_id == upload_id)
        return list(await self.session.scalars(rows.order_by(UploadPartRow.id)))

    async def forget_parts(self, upload_id: str) -> None:
        for part in await self.parts(upload_id):
            await self.session.delete(part)


def is_there(at: datetime) -> ColumnElement[bool]:
    """The condition on a file that is neither deleted nor past its time, whether or not somebody has removed it since."""
    return and_(FileRow.deleted_at.is_(None), or_(FileRow.expires_at.is_(None), FileRow.expires_at > at))
