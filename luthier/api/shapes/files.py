"""/files: upload, list, retrieve, content, delete."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, UploadFile
from starlette.responses import StreamingResponse

from luthier.api.auth import Asked, Caller
from luthier.api.shapes.wire import FileObject, page
from luthier.core.errors import NotOffered
from luthier.core.pages import PageRequest

router = APIRouter()

_CHUNK = 1024 * 1024  # bytes


@router.post("/files")
async def upload(
    who: Caller,
    services: Asked,
    file: UploadFile,
    purpose: Annotated[str, Form()],
    expires: Annotated[str | None, Form(alias="expires_after[anchor]")] = None,
    category: Annotated[str | None, Form()] = None,
) -> FileObject:
    if expires is not None:
        raise NotOffered("Files that expire are not offered by this version; delete them.", param="expires_after")
    stored = await services.datasets.add_file(who, file.filename or "upload", purpose, chunks(file), category=category)
    return FileObject.of(stored)


@router.get("/files")
async def list_files(
    who: Caller,
    services: Asked,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> dict[str, Any]:
    asked = PageRequest(min(limit, 10_000), after)
    found = await services.datasets.list(who, asked, purpose=purpose, newest_first=order == "desc")
    return page([FileObject.of(file) for file in found.items], found.has_more)


@router.get("/files/{file_id}")
async def retrieve(file_id: str, who: Caller, services: Asked) -> FileObject:
    return FileObject.of(await services.datasets.get(who, file_id))


@router.get("/files/{file_id}/content")
async def content(file_id: str, who: Caller, services: Asked) -> StreamingResponse:
    return StreamingResponse(await services.datasets.content(who, file_id), media_type="application/octet-stream")


@router.delete("/files/{file_id}")
async def delete(file_id: str, who: Caller, services: Asked) -> dict[str, Any]:
    await services.datasets.delete(who, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


async def chunks(file: UploadFile) -> AsyncIterator[bytes]:
    """The bytes of a part of a form, as they are stored."""
    while chunk := await file.read(_CHUNK):
        yield chunk
