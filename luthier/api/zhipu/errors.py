"""Zhipu's words for errors: numbers, as its published list has them.

Its clients choose their exception by the status alone; a program that looks further finds the number. Where the list has none
that fits, the nearest is taken.
"""

from __future__ import annotations

from luthier.api.edge import WrongMethod
from luthier.api.shapes.errors import ErrorTable, found
from luthier.core import errors

_CODES: dict[type[errors.LuthierError], str] = {
    WrongMethod: "1222",
    errors.ContextTooLong: "1261",
    errors.InvalidRequest: "1210",
    errors.Unauthenticated: "1000",
    errors.PermissionDenied: "1220",
    errors.ModelNotFound: "1211",
    errors.ModelNotDeployed: "1211",
    errors.NotFound: "1222",
    errors.Conflict: "1230",
    errors.RateLimited: "1302",
    errors.QuotaExceeded: "1308",
    errors.Unavailable: "503",
    errors.AnswerTookTooLong: "504",
    errors.LuthierError: "500",
}

_OF_A_FIELD = "1214"


def code_of(kind: type[errors.LuthierError], param: str | None) -> str:
    code = found(_CODES, kind)
    return _OF_A_FIELD if code == _CODES[errors.InvalidRequest] and param is not None else code


table = ErrorTable(lambda error: code_of(type(error), error.param))
