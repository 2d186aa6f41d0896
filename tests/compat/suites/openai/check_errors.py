"""Which exception every error is, also inside a stream, and which of them the client tries again."""

from __future__ import annotations

import uuid

import openai
import pytest
from openai import OpenAI

FAILURES = [
    ("invalid", 400, openai.BadRequestError, "invalid_parameter"),
    ("too-long", 400, openai.BadRequestError, "context_length_exceeded"),
    ("conflict", 400, openai.BadRequestError, "invalid_transition"),
    ("denied", 403, openai.PermissionDeniedError, "permission_denied"),
    ("absent", 404, openai.NotFoundError, "model_not_found"),
    ("undeployed", 404, openai.NotFoundError, "model_not_deployed"),
    ("limited", 429, openai.RateLimitError, "rate_limit_exceeded"),
    ("fault", 500, openai.InternalServerError, "internal_error"),
    ("crash", 500, openai.InternalServerError, "internal_error"),
    ("unavailable", 503, openai.InternalServerError, "replica_unavailable"),
]


def say(client: OpenAI, model: str, **more):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}], **more)


@pytest.mark.parametrize(("name", "status", "kind", "code"), FAILURES, ids=[row[0] for row in FAILURES])
def test_an_error_is_the_exception_that_the_client_has_for_it(
    faulty: OpenAI, name: str, status: int, kind: type[openai.APIStatusError], code: str
) -> None:
    for stream in (False, True):
        with pytest.raises(kind) as told:
            say(faulty, f"fail-{name}", stream=stream)
        assert (told.value.status_code, told.value.code) == (status, code)
        assert told.value.request_id.startswith("req-")
        assert "expected" not in told.value.message  # what a fault of ours was is not told


@pytest.mark.parametrize(("name", "status", "code"), [(name, status, code) for name, status, _, code in FAILURES])
def test_an_error_inside_a_stream_ends_it(faulty: OpenAI, name: str, status: int, code: str) -> None:
    """The client has one exception for all of them, with the answer's body in it."""
    texts: list[str] = []
    stream = say(faulty, f"fail-{name}-late", stream=True)
    with pytest.raises(openai.APIError) as told:
        texts.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "".join(texts) == "Hello"
    assert type(told.value) is openai.APIError
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    assert (told.value.code, told.value.type) == (code, kind)
    assert told.value.message


@pytest.mark.parametrize("name", ["limited", "unavailable", "fault"])
def test_what_may_pass_is_tried_again_by_the_client(faulty: OpenAI, name: str) -> None:
    answer = say(faulty.with_options(max_retries=1), f"fail-{name}-once-{uuid.uuid4()}")
    assert answer.choices[0].message.content == "Hello"


@pytest.mark.parametrize("name", ["conflict", "invalid", "absent"])
def test_what_stays_as_it_is_is_not_tried_again(faulty: OpenAI, name: str) -> None:
    model = f"fail-{name}-once-{uuid.uuid4()}"
    with pytest.raises(openai.APIStatusError):
        say(faulty.with_options(max_retries=2), model)
    assert say(faulty, model).choices[0].message.content == "Hello"  # the second call that the server has seen


@pytest.mark.parametrize("wrong", ["nonsense", "first.wrong" + "0" * 40, "nobody." + "0" * 40])
def test_a_wrong_key_is_an_authentication_error(url: str, wrong: str) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        OpenAI(base_url=f"{url}/v1", api_key=wrong, max_retries=0).models.list()
    assert refused.value.code == "invalid_api_key"


def test_an_unknown_model_is_named(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-9") as unknown:
        say(client, "gpt-9")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")


def test_calls_that_this_server_does_not_answer_say_so(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as embeddings:
        client.embeddings.create(model="toy", input="a")
    assert embeddings.value.code == "not_offered"
    for call in (
        lambda: client.responses.create(model="toy", input="a"),
        lambda: client.chat.completions.list(),
        lambda: client.chat.completions.retrieve("x"),
    ):
        with pytest.raises(openai.NotFoundError) as absent:
            call()
        assert absent.value.code == "not_found"
