"""OpenAI's API, as its official client speaks it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from luthier.api.dialect import Dialect
from luthier.api.shapes import chat, errors, files, fine_tuning, models, uploads
from luthier.core.errors import LuthierError


class OpenAI(Dialect):
    def mounts(self) -> dict[str, APIRouter]:
        router = APIRouter()
        for part in (files, uploads, fine_tuning, models, chat):
            router.include_router(part.router)
        return {"/v1": router, "/compatible-mode/v1": router}

    def render_error(self, error: LuthierError, request_id: str) -> Response:
        return errors.render(error)
