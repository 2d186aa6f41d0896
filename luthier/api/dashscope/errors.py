"""How DashScope's API says an error: flat, with `code`, `message` and `request_id`, all three always.

Its clients choose the class of an exception by the code first and by the status second. A state conflict is answered 400: the
2.x client retries a 409.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from luthier.api import examples
from luthier.api.dashscope.wire.envelope import Fault
from luthier.api.edge import TooLarge, WrongMethod
from luthier.api.kept_errors import kind_named
from luthier.api.shown import in_document
from luthier.core import errors

_TABLE: dict[type[errors.LuthierError], tuple[int, str]] = {
    TooLarge: (413, "BadRequest.TooLarge"),
    WrongMethod: (405, "MethodNotAllowed"),
    errors.InvalidRequest: (400, "InvalidParameter"),
    errors.Unauthenticated: (401, "InvalidApiKey"),
    errors.PermissionDenied: (403, "AccessDenied"),
    errors.ModelNotFound: (404, "Model.NotExist"),
    errors.ModelNotDeployed: (404, "Model.NotExist"),
    errors.NotFound: (404, "NotFound"),
    errors.Conflict: (400, "UnsupportedOperation"),
    errors.RateLimited: (429, "Throttling.RateQuota"),
    errors.QuotaExceeded: (429, "Throttling.AllocationQuota"),
    errors.Unavailable: (503, "ServiceUnavailable"),
    errors.AnswerTookTooLong: (504, "RequestTimeOut"),
    errors.LuthierError: (500, "InternalError"),
}


def body(error: errors.LuthierError, request_id: str) -> dict[str, Any]:
    return {"code": code_of(type(error)), "message": error.text, "request_id": request_id}


def described() -> dict[int | str, dict[str, Any]]:
    """What every route may answer besides, for the API's document."""
    refused, absent = (in_document(body(error, examples.REQUEST_ID)) for error in (examples.REFUSAL, examples.ABSENCE))
    return {
        "4XX": {"model": Fault, "description": "What the caller can change.", "content": refused},
        "5XX": {
            "model": Fault,
            "description": "A fault of ours, or nothing is there to answer now.",
            "content": absent,
        },
    }


def render(error: errors.LuthierError, request_id: str) -> JSONResponse:
    headers = {"retry-after": f"{error.retry_after:.0f}"} if error.retry_after is not None else None
    return JSONResponse(body(error, request_id), status_of(type(error)), headers)


def status_of(kind: type[errors.LuthierError]) -> int:
    return _row(kind)[0]


def code_of(kind: type[errors.LuthierError]) -> str:
    return _row(kind)[1]


def code_named(name: str) -> str:
    """The code for an error that was kept by its own stable name, such as what ended a job."""
    return code_of(kind_named(name))


def _row(kind: type[errors.LuthierError]) -> tuple[int, str]:
    return next(_TABLE[one] for one in kind.__mro__ if one in _TABLE)
