"""What no provider's API has: reports on files, what exactly will be trained, repairs, splits, token counts, deployments."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from luthier.api.dialect import Dialect
from luthier.api.platform import deployments, errors, files, formats, tokens
from luthier.core.errors import LuthierError


class Platform(Dialect):
    def mounts(self) -> dict[str, APIRouter]:
        router = APIRouter()
        for part in (files, formats, tokens, deployments):
            router.include_router(part.router, responses=errors.described())
        return {"/api/platform": router}

    def render_error(self, error: LuthierError, request_id: str) -> Response:
        return JSONResponse(*errors.told(error, request_id))
