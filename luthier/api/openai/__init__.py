"""OpenAI's API, as its official client speaks it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from luthier.api.dialect import Dialect
from luthier.api.openai import chat, completions, fine_tuning, not_offered
from luthier.api.openai.errors import table
from luthier.api.shapes import files, models, uploads
from luthier.api.shapes import fine_tuning as jobs
from luthier.api.shapes import not_offered as shared
from luthier.api.shapes.errors import described
from luthier.core.errors import LuthierError


class OpenAI(Dialect):
    def mounts(self) -> dict[str, APIRouter]:
        """The last one is for a client of DashScope's that speaks OpenAI's form below DashScope's path."""
        router = APIRouter()
        for part in (  # in the order in which they are looked through: what is asked most comes first
            chat.at("/chat/completions"),
            completions.router,
            files.router,
            uploads.router,
            fine_tuning.router,
            jobs.router,
            models.router,
            shared.router,
            not_offered.router,
        ):
            router.include_router(part, responses=described(table))
        return {"/v1": router, "/compatible-mode/v1": router, "/api/v1/chat/completions": chat.at("")}

    def render_error(self, error: LuthierError, request_id: str) -> Response:
        return table.render(error)
