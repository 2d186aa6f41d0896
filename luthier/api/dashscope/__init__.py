"""DashScope's native API, as its module API, its 2.x client, both of its command lines and plain curl speak it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from luthier.api.dashscope import deployments, errors, files, fine_tunes, generation, models
from luthier.api.dialect import Dialect
from luthier.core.errors import LuthierError


class DashScope(Dialect):
    def mounts(self) -> dict[str, APIRouter]:
        router = APIRouter(responses=errors.described())
        for part in (generation, files, fine_tunes, deployments, models):
            router.include_router(part.router)
        return {"/api/v1": router}

    def render_error(self, error: LuthierError, request_id: str) -> Response:
        return errors.render(error, request_id)
