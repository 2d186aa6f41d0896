"""Every error of the tree in the words of both dialects: status, code, and what the clients go by."""

from __future__ import annotations

import json

import pytest

from luthier.api.dialect import Dialect
from luthier.api.edge import TooLarge, WrongMethod
from luthier.api.openai import OpenAI
from luthier.api.zhipu import Zhipu
from luthier.core import errors

ROWS: list[tuple[errors.LuthierError, int, str, str, str]] = [
    (errors.InvalidRequest("x"), 400, "invalid_request_error", "invalid_request", "1210"),
    (errors.InvalidRequest("x", param="a"), 400, "invalid_request_error", "invalid_request", "1214"),
    (errors.InvalidParameter("a", "x"), 400, "invalid_request_error", "invalid_parameter", "1214"),
    (errors.NotOffered("x"), 400, "invalid_request_error", "not_offered", "1210"),
    (errors.DatasetInvalid("x", [], param="a"), 400, "invalid_request_error", "invalid_training_file", "1214"),
    (errors.ContextTooLong("x", param="a"), 400, "invalid_request_error", "context_length_exceeded", "1261"),
    (errors.Unauthenticated("x"), 401, "invalid_request_error", "invalid_api_key", "1000"),
    (errors.PermissionDenied("x"), 403, "invalid_request_error", "permission_denied", "1220"),
    (errors.NotFound("x"), 404, "invalid_request_error", "not_found", "1222"),
    (errors.FileNotFound("x"), 404, "invalid_request_error", "file_not_found", "1222"),
    (errors.ModelNotFound("x", param="a"), 404, "invalid_request_error", "model_not_found", "1211"),
    (errors.ModelNotDeployed("x"), 404, "invalid_request_error", "model_not_deployed", "1211"),
    (WrongMethod("x"), 405, "invalid_request_error", "method_not_supported", "1222"),
    (errors.Conflict("x"), 400, "invalid_request_error", "conflict", "1230"),
    (errors.InvalidTransition("x"), 400, "invalid_request_error", "invalid_transition", "1230"),
    (TooLarge("x"), 413, "invalid_request_error", "request_too_large", "1210"),
    (errors.RateLimited("x"), 429, "rate_limit_error", "rate_limit_exceeded", "1302"),
    (errors.QuotaExceeded("x"), 429, "rate_limit_error", "quota_exceeded", "1308"),
    (errors.ReplicaUnavailable("x"), 503, "server_error", "replica_unavailable", "503"),
    (errors.AnswerTookTooLong("x"), 504, "server_error", "answer_took_too_long", "504"),
    (errors.RunLost("x"), 500, "server_error", "run_lost", "500"),
    (errors.InternalError("x"), 500, "server_error", "internal_error", "500"),
]


@pytest.mark.parametrize(
    ("error", "status", "kind", "word", "number"), ROWS, ids=[type(row[0]).__name__ for row in ROWS]
)
def test_an_error_is_told_in_the_words_of_each_dialect(
    error: errors.LuthierError, status: int, kind: str, word: str, number: str
) -> None:
    for dialect, code in ((OpenAI(), word), (Zhipu(), number)):
        answer = dialect.render_error(error, "req-1")
        told = {"message": error.text, "type": kind, "param": error.param, "code": code}
        assert (answer.status_code, json.loads(bytes(answer.body))) == (status, {"error": told})


@pytest.mark.parametrize("dialect", [OpenAI(), Zhipu()], ids=["openai", "zhipu"])
def test_when_to_come_again_is_told_in_whole_seconds(dialect: Dialect) -> None:
    limited = dialect.render_error(errors.RateLimited("x", retry_after=3.0), "req-1")
    assert limited.headers["retry-after"] == "3"
    assert "retry-after" not in dialect.render_error(errors.RateLimited("x"), "req-1").headers


@pytest.mark.parametrize("dialect", [OpenAI(), Zhipu()], ids=["openai", "zhipu"])
def test_an_error_born_tomorrow_is_told_like_its_parent(dialect: Dialect) -> None:
    class Tomorrow(errors.ModelNotFound):
        code = "tomorrow_not_found"

    assert dialect.render_error(Tomorrow("x"), "req-1").status_code == 404
