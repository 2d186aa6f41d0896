"""How our own API says an error: flat, with what to do next and the request's id."""

from __future__ import annotations

from typing import Any

from luthier.api import examples
from luthier.api.edge import TooLarge, WrongMethod
from luthier.api.platform.wire import Refusal
from luthier.api.shown import in_document
from luthier.core import errors

_STATUSES: dict[type[errors.LuthierError], int] = {
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


def described() -> dict[int | str, dict[str, Any]]:
    """What every route may answer besides, for the API's document."""
    refused, absent = (
        in_document(told(error, examples.REQUEST_ID)[0]) for error in (examples.REFUSAL, examples.ABSENCE)
    )
    return {
        "4XX": {"model": Refusal, "description": "What the caller can change.", "content": refused},
        "5XX": {
            "model": Refusal,
            "description": "A fault of ours, or nothing is there to answer now.",
            "content": absent,
        },
    }


def told(error: errors.LuthierError, request_id: str) -> tuple[dict[str, Any], int]:
    """The body and the status."""
    status = next(_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES)
    body = {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "param": error.param,
        "request_id": request_id,
    }
    if isinstance(error, errors.DatasetInvalid):
        body["problems"] = [{"line": line, "message": message} for line, message in error.problems]
    return body, status
