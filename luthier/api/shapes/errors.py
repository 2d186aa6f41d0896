"""How these families say an error: one envelope; the table of statuses and code words is each dialect's own.

A state conflict is answered 400: the official clients try a 409 again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse

from luthier.api import examples
from luthier.api.edge import TooLarge, WrongMethod
from luthier.api.shapes.wire.base import ErrorEnvelope
from luthier.api.shown import in_document
from luthier.core import errors

STATUSES: dict[type[errors.LuthierError], int] = {
    TooLarge: 413,
    WrongMethod: 405,
    errors.InvalidRequest: 400,
    errors.Unauthenticated: 401,
    errors.PermissionDenied: 403,
    errors.NotFound: 404,
    errors.Conflict: 400,
    errors.QuotaExceeded: 429,
    errors.Unavailable: 503,
    errors.AnswerTookTooLong: 504,
    errors.LuthierError: 500,
}


class ErrorTable:
    """`code_of` gives the dialect's word for an error. The lookup walks the class's ancestors, so a new one is in it at once."""

    def __init__(self, code_of: Callable[[errors.LuthierError], str]) -> None:
        self._code_of = code_of

    def body(self, error: errors.LuthierError) -> dict[str, Any]:
        kind = _kind(found(STATUSES, type(error)))
        return {"error": {"message": error.text, "type": kind, "param": error.param, "code": self._code_of(error)}}

    def render(self, error: errors.LuthierError) -> JSONResponse:
        headers = {"retry-after": f"{error.retry_after:.0f}"} if error.retry_after is not None else None
        return JSONResponse(self.body(error), found(STATUSES, type(error)), headers)


def described(table: ErrorTable) -> dict[int | str, dict[str, Any]]:
    """For the API's document: what every route may answer besides."""
    refused, absent = (in_document(table.body(error)) for error in (examples.REFUSAL, examples.ABSENCE))
    return {
        "4XX": {
            "model": ErrorEnvelope,
            "description": "The request cannot be answered as it is; the error says why.",
            "content": refused,
        },
        "5XX": {
            "model": ErrorEnvelope,
            "description": "A fault of the server's, or nobody to answer now.",
            "content": absent,
        },
    }


def found(table: dict[type[errors.LuthierError], Any], kind: type[errors.LuthierError]) -> Any:
    """What a table says of a class of errors, or of the nearest of its ancestors that is in it."""
    return next(table[one] for one in kind.__mro__ if one in table)


def _kind(status: int) -> str:
    return "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
