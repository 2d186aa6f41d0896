"""The API's document is whole: every route says what it does, takes, answers and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

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


def shown(document: dict[str, Any], content: dict[str, Any]) -> Any:
    """The example of a request or an answer: its own, or that of its schema."""
    return content.get("example", resolved(document, content["schema"]).get("example"))


def faults(document: dict[str, Any], content: dict[str, Any]) -> list[str]:
    """What is wrong with the example of an answer in JSON."""
    schema = content["schema"] | {"components": document["components"]}
    return [fault.message for fault in Draft202012Validator(schema).iter_errors(shown(document, content))]


def is_offered(route: dict[str, Any]) -> bool:
    return "not offered" not in route.get("summary", "").lower()


def test_every_answer_has_an_example_that_is_one(document: dict[str, Any]) -> None:
    found = 0
    for name, route in everything(document):
        content = route["responses"]["200"].get("content", {}).get("application/json")
        if content is not None and is_offered(route):
            assert shown(document, content), name
            assert faults(document, content) == [], name
            found += 1
    assert found > 70


def test_every_refusal_has_an_example_that_is_one(document: dict[str, Any]) -> None:
    codes = set()
    for name, route in everything(document):
        for status in ("4XX", "5XX"):
            content = route["responses"][status]["content"]["application/json"]
            assert faults(document, content) == [], name
            told = content["example"]
            codes.add(told.get("error", told)["code"])
    assert {
        "invalid_parameter",
        "1214",
        "InvalidParameter",
        "replica_unavailable",
        "503",
        "ServiceUnavailable",
    } == codes


def test_every_stream_has_an_example_of_its_events(document: dict[str, Any]) -> None:
    found = 0
    for name, route in everything(document):
        content = route["responses"]["200"].get("content", {}).get("text/event-stream")
        if content is None:
            continue
        *events, last = [
            frame.rpartition("data:")[2] for frame in content["example"].removesuffix("\n\n").split("\n\n")
        ]
        if not name.startswith("GET /api/v1/") and "/generation" not in name:
            assert last == " [DONE]" and len(events) > 2, name
        else:
            events.append(last)
        assert all(isinstance(json.loads(event), dict) for event in events), name
        found += 1
    assert found == 9


def test_an_example_has_no_field_that_its_answer_does_not_describe(document: dict[str, Any]) -> None:
    for name, route in everything(document):
        content = route["responses"]["200"].get("content", {}).get("application/json")
        schema = resolved(document, content["schema"]) if content and is_offered(route) else {}
        if "properties" in schema and not schema.get("additionalProperties"):
            assert set(shown(document, content)) <= set(schema["properties"]), name


ANOTHER = """
import json
from fastapi import FastAPI
from luthier.api import edge
from luthier.api.dialect import dialects

app = FastAPI()
edge.install(app, [dialects.load(name)() for name in dialects.names()], upload_limit_bytes=1, stalled_after_seconds=1)
print(json.dumps(app.openapi()["paths"]))
"""


def test_another_process_makes_the_same_document(document: dict[str, Any]) -> None:
    done = subprocess.run([sys.executable, "-c", ANOTHER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {path: item for path, item in document["paths"].items() if path != "/healthz"}


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
