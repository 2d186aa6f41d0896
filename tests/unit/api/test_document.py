"""The API's document is whole: every route says what it does, takes, answers and refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from luthier.api.dialect import dialects
from luthier.api.streaming import EVENT
from tests.unit.api.conftest import Api

PREFIXES = ("/v1/", "/compatible-mode/v1/", "/api/paas/v4/", "/api/v1/chat/completions")


@pytest.fixture(scope="module")
def document(api: Api) -> dict[str, Any]:
    return api.app.openapi()


def routes(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        if path.startswith(PREFIXES):
            for method, route in methods.items():
                yield f"{method.upper()} {path}", route


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return document["components"]["schemas"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def test_the_document_has_the_routes_of_both_dialects(document: dict[str, Any]) -> None:
    found = {name for name, _ in routes(document)}
    assert {
        "POST /v1/completions",
        "POST /api/paas/v4/async/chat/completions",
        "POST /api/v1/chat/completions",
    } <= found
    assert len(found) > 60


def test_every_route_says_what_it_does(document: dict[str, Any]) -> None:
    assert [name for name, route in routes(document) if not route.get("summary") or not route.get("tags")] == []


def test_every_answer_has_a_shape(document: dict[str, Any]) -> None:
    def is_said(route: dict[str, Any]) -> bool:
        contents = route["responses"]["200"].get("content", {})
        return bool(contents) and all(content.get("schema") for content in contents.values())

    assert [name for name, route in routes(document) if not is_said(route)] == []


def test_a_stream_is_described_by_its_events(document: dict[str, Any]) -> None:
    """The schema of a stream is that of each event in it, which the clients' checkers hold every event against."""
    streams = {
        f"{method.upper()} {path}": route["responses"]["200"]["content"]["text/event-stream"]["schema"]
        for path, methods in document["paths"].items()
        for method, route in methods.items()
        if "text/event-stream" in route["responses"]["200"].get("content", {})
    }
    assert {"POST /v1/chat/completions", "GET /api/v1/fine-tunes/{job_id}/stream"} <= set(streams)
    assert all(schema == EVENT for schema in streams.values())


def test_every_route_says_how_it_refuses(document: dict[str, Any]) -> None:
    for name, route in routes(document):
        for status in ("4XX", "5XX"):
            schema = route["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorEnvelope"}, name
        assert "422" not in route["responses"], name


def test_every_json_body_has_an_example(document: dict[str, Any]) -> None:
    for name, route in routes(document):
        content = route.get("requestBody", {}).get("content", {}).get("application/json")
        if content is not None:
            assert "example" in resolved(document, content["schema"]), name


def everything(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The routes of all dialects, each of which is below a path of its dialect."""
    mounts = tuple(f"{path}/" for name in dialects.names() for path in dialects.load(name)().mounts())
    for path, methods in document["paths"].items():
        if f"{path}/".startswith(mounts):
            for method, route in methods.items():
                yield f"{method.upper()} {path}", route


def test_every_route_of_a_dialect_wants_a_key(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert list(schemes.values()) == [{"type": "http", "scheme": "bearer"}]
    wanted = [{name: []} for name in schemes]
    assert [name for name, route in everything(document) if route.get("security") != wanted] == []
    assert "security" not in document["paths"]["/healthz"]["get"]


def test_every_form_has_an_example_with_what_it_must_have(document: dict[str, Any]) -> None:
    found = 0
    for name, route in everything(document):
        content = route.get("requestBody", {}).get("content", {}).get("multipart/form-data")
        if content is not None:
            schema = resolved(document, content["schema"])
            assert set(schema["required"]) <= set(content["example"]) <= set(schema["properties"]), name
            found += 1
    assert found >= 8


def test_whatever_is_streamed_says_so(document: dict[str, Any]) -> None:
    for name, route in everything(document):
        content = route.get("requestBody", {}).get("content", {}).get("application/json")
        if content and "stream" in resolved(document, content["schema"]).get("properties", {}):
            is_later = "/async/" in name
            assert ("text/event-stream" in route["responses"]["200"]["content"]) is not is_later, name


def test_an_example_is_a_request_that_is_understood(api: Api, document: dict[str, Any]) -> None:
    tried: list[str] = []
    for name, route in routes(document):
        method, path = name.split(" ")
        content = route.get("requestBody", {}).get("content", {}).get("application/json")
        example = resolved(document, content["schema"])["example"] if content else {}
        if "model" in example:
            answer = api.call(method, path, api.ada, json=example | {"model": "nothing"})
            assert answer.status_code == 404, f"{name}: {answer.text}"  # all the rest of it was taken
            tried.append(name)
    assert len(tried) == 10
