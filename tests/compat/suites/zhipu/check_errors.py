"""Which exception every error is, also inside a stream, and which of them the client tries again; both forms of a key."""

from __future__ import annotations

import uuid

import pytest

FAILURES = [
    ("invalid", 400, "APIRequestFailedError", "1214"),
    ("too-long", 400, "APIRequestFailedError", "1261"),
    ("conflict", 400, "APIRequestFailedError", "1230"),
    ("denied", 403, "APIStatusError", "1220"),
    ("absent", 404, "APIStatusError", "1211"),
    ("undeployed", 404, "APIStatusError", "1211"),
    ("limited", 429, "APIReachLimitError", "1302"),
    ("fault", 500, "APIInternalError", "500"),
    ("crash", 500, "APIInternalError", "500"),
    ("unavailable", 503, "APIServerFlowExceedError", "503"),
]


@pytest.fixture(scope="module")
def faulty(make, faulty_url: str):
    return make(faulty_url, max_retries=0)


def said(client, model: str, **more):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}], **more)


@pytest.mark.parametrize(("name", "status", "kind", "code"), FAILURES, ids=[row[0] for row in FAILURES])
def test_an_error_is_the_exception_that_the_client_has_for_it(
    faulty, core, name: str, status: int, kind: str, code: str
) -> None:
    for stream in (False, True):
        with pytest.raises(core.APIStatusError) as told:
            said(faulty, f"fail-{name}", stream=stream)
        assert (type(told.value).__name__, told.value.status_code) == (kind, status)
        assert told.value.response.json()["error"]["code"] == code


@pytest.mark.parametrize("name", [row[0] for row in FAILURES])
def test_an_error_inside_a_stream_ends_it_with_its_own_words(faulty, core, name: str) -> None:
    texts: list[str] = []
    stream = said(faulty, f"fail-{name}-late", stream=True)
    with pytest.raises(core.APIResponseError) as told:
        texts.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    # The client leaves it open. As garbage, collected while the pool of connections is locked, it would wait for ever.
    stream.response.close()
    assert "".join(texts) == "Hello"
    assert told.value.message and told.value.message != "An error occurred during streaming"


@pytest.mark.parametrize("name", ["limited", "unavailable", "fault"])
def test_what_may_pass_is_tried_again_by_the_client(make, faulty_url: str, name: str) -> None:
    answer = said(make(faulty_url, max_retries=1), f"fail-{name}-once-{uuid.uuid4()}")
    assert answer.choices[0].message.content == "Hello"


@pytest.mark.parametrize("name", ["conflict", "invalid", "absent"])
def test_what_stays_as_it_is_is_not_tried_again(make, core, faulty, faulty_url: str, name: str) -> None:
    model = f"fail-{name}-once-{uuid.uuid4()}"
    with pytest.raises(core.APIStatusError):
        said(make(faulty_url, max_retries=2), model)
    assert said(faulty, model).choices[0].message.content == "Hello"  # the second call that the server has seen


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("wrong", ["first.wrong" + "0" * 40, "nobody." + "0" * 40])
def test_a_wrong_key_is_an_authentication_error(make, core, is_signed: bool, wrong: str) -> None:
    with pytest.raises(core.APIAuthenticationError):
        said(make(api_key=wrong, disable_token_cache=not is_signed, max_retries=0), "toy")


@pytest.mark.parametrize("is_signed", [False, True])
def test_a_key_is_sent_as_it_is_or_as_a_signed_token(make, key: str, is_signed: bool) -> None:
    client = make(disable_token_cache=not is_signed, max_retries=0)
    assert said(client, "toy", max_tokens=4).choices
    sent = client.auth_headers["Authorization"].removeprefix("Bearer ")
    assert (sent == key, sent.count(".")) == ((False, 2) if is_signed else (True, 1))


def test_embeddings_are_not_offered(client, core) -> None:
    with pytest.raises(core.APIRequestFailedError, match="not offered"):
        client.embeddings.create(model="toy", input="a")
