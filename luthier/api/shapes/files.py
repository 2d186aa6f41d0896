"""/files: upload, list, retrieve, content, delete."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, UploadFile
from starlette.responses import StreamingResponse

from luthier.api import forms
from luthier.api.auth import Asked, Caller
from luthier.api.shapes.wire.base import Deleted, ListPage, page
from luthier.api.shapes.wire.files import Anchor, FileObject, Lifetime, purpose
from luthier.core.errors import InvalidParameter
from luthier.core.pages import PageRequest

router = APIRouter(tags=["Files"])


@router.post(
    "/files",
    summary="Upload a file",
    openapi_extra=forms.example(file="rows.jsonl", purpose="fine-tune"),
)
async def upload(
    who: Caller,
    services: Asked,
    file: UploadFile,
    purpose_: Annotated[str, Form(alias="purpose", examples=["fine-tune"])],
    anchor: Annotated[
        Anchor | None, Form(alias="expires_after[anchor]", description="Sent with `expires_after[seconds]`.")
    ] = None,
    seconds: Annotated[
        Lifetime | None,
        Form(alias="expires_after[seconds]", description="How long the file stays; absent: until it is deleted."),
    ] = None,
    category: Annotated[
        str | None, Form(description="Ours: the format of its rows; absent: it is told from them.")
    ] = None,
) -> FileObject:
    if (anchor is None) != (seconds is None):
        missing, other = ("anchor", "seconds") if anchor is None else ("seconds", "anchor")
        raise InvalidParameter(f"expires_after[{missing}]", f"must be sent with expires_after[{other}].")
    stored = await services.datasets.add_file(
        who,
        file.filename or "upload",
        purpose(purpose_),
        forms.chunks(file),
        category=category,
        expires_after_seconds=seconds,
    )
    return FileObject.of(stored)


@router.get("/files", summary="List files", response_model=ListPage[FileObject])
async def list_files(
    who: Caller,
    services: Asked,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose_: Annotated[str | None, Query(alias="purpose")] = None,
) -> dict[str, Any]:
    asked = PageRequest(min(limit, 10_000), after)
    wanted = None if purpose_ is None else purpose(purpose_)
    found = await services.datasets.list(who, asked, purpose=wanted, newest_first=order == "desc")
    return page([FileObject.of(file) for file in found.items], found.has_more)


@router.get("/files/{file_id}", summary="Retrieve a file")
async def retrieve(file_id: str, who: Caller, services: Asked) -> FileObject:
    return FileObject.of(await services.datasets.get(who, file_id))


@router.get(
    "/files/{file_id}/content",
    summary="The bytes of a file",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def content(file_id: str, who: Caller, services: Asked) -> StreamingResponse:
    return StreamingResponse(await services.datasets.content(who, file_id), media_type="application/octet-stream")


@router.delete("/files/{file_id}", summary="Delete a file")
async def delete(file_id: str, who: Caller, services: Asked) -> Deleted:
    await services.datasets.delete(who, file_id)
    return Deleted(id=file_id, object="file")
