"""/formats: what a file may hold, with a sample of each to download."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from luthier.api.auth import Caller
from luthier.api.platform.wire import Format, Formats, sample_name
from luthier.core.errors import NotFound
from luthier.formats.base import known

router = APIRouter()


@router.get("/formats")
async def list_formats(who: Caller) -> Formats:
    return Formats(data=[Format.of(name, form) for name, form in known().items()])


_BYTES = {"schema": {"type": "string", "format": "binary"}}


@router.get(
    "/formats/{name}/sample",
    response_class=Response,
    responses={200: {"content": {"application/jsonl": _BYTES, "application/zip": _BYTES}}},
)
async def sample(name: str, who: Caller) -> Response:
    """The sample file of a format."""
    form = known().get(name)
    if form is None:
        raise NotFound(f"There is no format {name!r}; known: {', '.join(known())}.")
    headers = {"content-disposition": f'attachment; filename="{sample_name(name, form)}"'}
    media_type = "application/zip" if form.in_archive else "application/jsonl"
    return Response(form.sample(), media_type=media_type, headers=headers)
