"""OpenAI's API, as its official client speaks it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from luthier.api.dialect import Dialect
from luthier.api.openai import chat, errors, files, fine_tuning, models, uploads
from luthier.core.errors import LuthierError


class OpenAI(Dialect):
    prefixes = ("/v1", "/compatible-mode/v1")

    def routes(self) -> APIRouter:
        router = APIRouter()
        for part in (files, uploads, fine_tuning, models, chat):
            router.include_router(part.router)
        return router

    def render_error(self, error: LuthierError, request_id: str) -> Response:
        return errors.render(error)
