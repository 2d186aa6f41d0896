"""Zhipu's API, as its two official clients speak it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from luthier.api.dialect import Dialect
from luthier.api.shapes import files, models, not_offered, uploads
from luthier.api.shapes import fine_tuning as jobs
from luthier.api.shapes.errors import described
from luthier.api.zhipu import async_completions, chat, fine_tuning
from luthier.api.zhipu.errors import table
from luthier.core.errors import LuthierError


class Zhipu(Dialect):
    def mounts(self) -> dict[str, APIRouter]:
        router = APIRouter()
        for part in (chat, async_completions, files, uploads, fine_tuning, jobs, models, not_offered):
            router.include_router(part.router, responses=described(table))
        return {"/api/paas/v4": router}

    def render_error(self, error: LuthierError, request_id: str) -> Response:
        return table.render(error)
