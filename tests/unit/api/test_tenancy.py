"""A walk over every route there is: none without a key, and another project's things are not there.

A new route is walked by itself. One with an id of a new kind, or with a body, has to be told here what to send.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.routing import BaseRoute

from tests.unit.api.conftest import Api

OPEN = {("GET", "/healthz")}
"""What answers without a key."""

NAMES_NOBODYS_THINGS = {("POST", "/files"), ("POST", "/uploads")}
"""What takes a body and names nothing that is there already; paths are without the prefix of their dialect."""

NOT_OFFERED = {
    ("POST", path) for path in ("/embeddings", *(f"/fine_tuning/alpha/graders/{verb}" for verb in ("run", "validate")))
}
"""What is refused whoever asks."""

NOT_THERE = ("not_found", "NotFound", "Model.NotExist", "1211", "1222")
"""How the codes of a thing that is not there end, by dialect."""

NOBODYS = {("GET", "/formats/{name}/sample")}
"""What has a name in its path that belongs to no project."""


def bare(path: str) -> str:
    """A path without the prefix of its dialect."""
    for prefix in ("/api/platform", "/api/paas/v4"):
        if path.startswith(f"{prefix}/"):
            return path.removeprefix(prefix)
    return path[path.index("/v1") + 3 :]


def filled(path: str, things: dict[str, str]) -> str:
    """A path with things in it, and what it must be asked with."""
    asked = "?model=toy" if path.endswith("/rows/{row}") else ""
    return path.format(**things | {"row": "1"}) + asked


def chat(model: str) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}]}


def bodies(method: str, path: str, theirs: dict[str, str]) -> list[dict[str, object]]:
    """Bodies that name another project's things, for a route that takes one; a form is under `files`."""
    named: dict[tuple[str, str], list[dict[str, object]]] = {
        ("POST", "/uploads/{upload_id}/complete"): [{"part_ids": [theirs["part_id"]]}],
        ("POST", "/deployments"): [
            {"model" if "/platform/" in path else "model_name": theirs[name]} for name in ("name", "checkpoint")
        ],
        ("PATCH", "/deployments/{deployment_id}"): [{"capacity": 2}],
        ("PUT", "/deployments/{deployment_id}/scale"): [{"capacity": 2}],
        ("POST", "/tokens"): [{"model": theirs["name"], "text": "Hi"}, {"model": theirs["checkpoint"], "text": "Hi"}],
        ("POST", "/files/{file_id}/split"): [{}, {"ratio": 0.5, "seed": 1}],
        ("POST", "/fine_tuning/jobs"): [
            {"model": "toy", "training_file": theirs["file_id"]},
            {"model": theirs["name"], "training_file": theirs["file_id"]},
        ],
        ("POST", "/chat/completions"): [chat(theirs["name"]), chat(theirs["checkpoint"])],
        ("POST", "/async/chat/completions"): [chat(theirs["name"]), chat(theirs["checkpoint"])],
        ("POST", "/completions"): [{"model": theirs[name], "prompt": "Hi"} for name in ("name", "checkpoint")],
        ("POST", "/fine-tunes"): [
            {"model": "toy", "training_file_ids": [theirs["file_id"]], "training_type": "efficient_sft"},
            {"model": theirs["name"], "training_file_ids": [theirs["file_id"]]},
        ],
        ("POST", "/services/aigc/text-generation/generation"): [
            {"model": name, "input": {"prompt": "Hi"}} for name in (theirs["name"], theirs["checkpoint"])
        ],
    }
    forms: dict[tuple[str, str], list[dict[str, object]]] = {
        ("POST", "/uploads/{upload_id}/parts"): [{"files": {"data": b"rows"}}],
    }
    return forms.get((method, bare(path))) or [{"json": body} for body in named[method, bare(path)]]


def routes(api: Api) -> Iterator[tuple[str, str, bool]]:
    for path, methods in api.app.openapi()["paths"].items():
        for method, described in methods.items():
            yield method.upper(), path, "requestBody" in described


def test_every_route_is_in_the_document(api: Api) -> None:
    def paths(found: list[BaseRoute]) -> set[str]:
        return {getattr(route, "path_format", "") for route in found}

    hidden = paths(api.app.routes) - {path for _, path, _ in routes(api)} - {"", "/openapi.json"}
    assert hidden == set()


def test_no_route_answers_without_a_key(api: Api) -> None:
    for method, path, _ in routes(api):
        if (method, path) in OPEN:
            assert api.call(method, path, None).status_code == 200
            continue
        status, error = api.refused(method, filled(path, api.bobs), None)
        assert (status, error["code"]) in ((401, code) for code in ("invalid_api_key", "1000", "InvalidApiKey")), path


def test_another_projects_things_are_not_there_on_any_route(api: Api) -> None:
    for method, path, has_body in routes(api):
        if (method, path) in OPEN or (method, bare(path)) in NAMES_NOBODYS_THINGS | NOBODYS | NOT_OFFERED:
            continue
        for body in bodies(method, path, api.bobs) if has_body else [{}]:
            if "{" in path or has_body:
                status, error = api.refused(method, filled(path, api.bobs), api.ada, **body)
                assert status == 404, f"{method} {path}"
                assert error["code"].endswith(NOT_THERE)
            else:
                answer = api.call(method, path, api.ada)
                assert answer.status_code == 200, f"{method} {path}"
                assert not [thing for thing in api.bobs.values() if thing in answer.text], f"{method} {path}"


def test_the_ids_of_that_walk_are_real(api: Api) -> None:
    for method, path, _ in routes(api):
        if method == "GET" and "/export/" not in path:  # which is offered to nobody
            things = (
                api.bobs | {"name": "messages"}
                if (method, path) not in OPEN and (method, bare(path)) in NOBODYS
                else api.bobs
            )
            assert api.call(method, filled(path, things), api.bob).status_code == 200, path
    assert api.bobs["file_id"] in api.call("GET", "/v1/files", api.bob).text
    assert api.bobs["job_id"] in api.call("GET", "/v1/fine_tuning/jobs", api.bob).text
    assert api.bobs["name"] in api.call("GET", "/v1/models", api.bob).text


@pytest.mark.parametrize("nonsense", ["nonsense", "%2e%2e%2f", "%00", "%20", "x" * 3000, "'%20OR%201=1", "谢谢"])
def test_a_nonsense_id_is_a_thing_that_is_not_there(api: Api, nonsense: str) -> None:
    for method, path, has_body in routes(api):
        if "{" in path and not has_body:
            address = filled(path, dict.fromkeys(api.bobs, nonsense))
            status, _ = api.refused(method, address, api.ada)
            assert status == 404, f"{method} {address}"
