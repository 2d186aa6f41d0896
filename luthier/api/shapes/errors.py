"""How OpenAI's API says an error: one table, one function.

A state conflict is answered 400: the official client retries a 409.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from luthier.api.edge import TooLarge, WrongMethod
from luthier.core import errors

_TABLE: dict[type[errors.LuthierError], tuple[int, str]] = {
    TooLarge: (413, "invalid_request_error"),
    WrongMethod: (405, "invalid_request_error"),
    errors.InvalidRequest: (400, "invalid_request_error"),
    errors.Unauthenticated: (401, "invalid_request_error"),
    errors.PermissionDenied: (403, "invalid_request_error"),
    errors.NotFound: (404, "invalid_request_error"),
    errors.Conflict: (400, "invalid_request_error"),
    errors.QuotaExceeded: (429, "rate_limit_error"),
    errors.Unavailable: (503, "server_error"),
    errors.LuthierError: (500, "server_error"),
}


def body(error: errors.LuthierError) -> dict[str, Any]:
    _, kind = _row(error)
    return {"error": {"message": error.text, "type": kind, "param": error.param, "code": error.code}}


def render(error: errors.LuthierError) -> JSONResponse:
    status, _ = _row(error)
    headers = {"retry-after": f"{error.retry_after:.0f}"} if error.retry_after is not None else None
    return JSONResponse(body(error), status, headers)


def _row(error: errors.LuthierError) -> tuple[int, str]:
    return next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)
