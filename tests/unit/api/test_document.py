"""The API's document is whole: every route says what it does, takes, answers and refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

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
