"""Forms: an example of one for the API's document, since the framework reads none from its fields; the bytes of a file in one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import UploadFile

_CHUNK = 1024 * 1024  # bytes


def example(**fields: Any) -> dict[str, Any]:
    """What a route adds to its description; a file stands there by its name."""
    return {"requestBody": {"content": {"multipart/form-data": {"example": fields}}}}


async def chunks(file: UploadFile) -> AsyncIterator[bytes]:
    """The bytes of a part of a form, as they are stored."""
    while chunk := await file.read(_CHUNK):
        yield chunk
