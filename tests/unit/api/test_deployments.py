"""Deployments over HTTP, in both dialects that have them: made, called by their names in every dialect, scaled, ended."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from luthier.app import build
from luthier.control.catalog.cards import EMBEDDED
from luthier.core import logs
from luthier.core.settings import ServerSection, ServingSection, Settings
from luthier.executors.base import executors
from luthier.testing import toy_parts
from tests.unit.api.conftest import Api

P, OURS = "/api/v1/deployments", "/api/platform/deployments"


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Iterator[Api]:
    """A server whose replicas are real and say back what they hear."""
    logs.configure("critical")
    folder = tmp_path_factory.mktemp("echo")
    executor = executors.load("local")(folder / "processes", 2)  # type: ignore[call-arg]
    serving = ServingSection.model_validate({"backend": "echo", "grace_seconds": 0})
    parts = toy_parts(folder, executor, serving=serving)
    for name in (EMBEDDED, "toy"):
        parts.installer.add(name, str(toy_folder))
    server = ServerSection.model_validate({"data": folder})
    made: list[str] = []
    app = build(Settings.model_construct(None, server=server), parts=parts, announce=made.append)
    with TestClient(app) as client:
        yield Api(app, parts, client, ada=made[0], bob="")


def until(api: Api, path: str, *statuses: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = api.call("GET", path, api.ada).json()
        if (found := found.get("output", found))["status"] in statuses:
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def until_gone(api: Api, path: str) -> None:
    deadline = time.monotonic() + 60
    while api.call("GET", path, api.ada).status_code != 404:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_deployment_is_called_in_every_dialect_and_by_name_and_id_until_it_is_deleted(echo: Api) -> None:
    made = echo.call("POST", OURS, echo.ada, json={"model": "toy", "name": "mine"}).json()
    assert (made["name"], made["model"], made["method"], made["capacity"], made["status"]) == (
        ("mine", "toy", None, 1, "pending")
    )
    found = until(echo, f"{OURS}/mine", "running")
    assert (found["ready"], found["progress"], found["error"]) == (1, 1.0, None)
    asked = {"messages": [{"role": "user", "content": "Hello there"}]}
    for prefix in ("/v1", "/api/paas/v4", "/compatible-mode/v1"):
        for name in ("mine", made["id"]):
            told = echo.call("POST", f"{prefix}/chat/completions", echo.ada, json=asked | {"model": name}).json()
            assert told["choices"][0]["message"]["content"] == "Hello there"
    counts = [
        echo.call("POST", "/api/platform/tokens", echo.ada, json={"model": name, "text": "Hello there"}).json()[
            "tokens"
        ]
        for name in ("toy", "mine", made["id"])
    ]
    assert counts == [counts[0]] * 3 and counts[0] > 0
    generation = "/api/v1/services/aigc/text-generation/generation"
    told = echo.call("POST", generation, echo.ada, json={"model": "mine", "input": {"prompt": "Hello there"}}).json()
    assert told["output"]["text"] == "Hello there"

    assert echo.call("DELETE", f"{OURS}/mine", echo.ada).json()["status"] == "deleting"
    status, error = echo.refused("POST", "/v1/chat/completions", echo.ada, json=asked | {"model": "mine"})
    assert (status, error["code"]) in ((404, code) for code in ("model_not_deployed", "model_not_found"))


def test_dashscopes_deployments_are_made_scaled_listed_and_deleted(echo: Api) -> None:
    sent = {"model_name": "toy", "capacity": 1, "suffix": "tone", "plan": "lora", "billing_method": "post_paid"}
    made = echo.call("POST", P, echo.ada, json=sent).json()["output"]
    assert (made["deployed_model"], made["status"], made["model_name"]) == ("toy-tone", "PENDING", "toy")
    found = until(echo, f"{P}/toy-tone", "RUNNING")
    assert (found["capacity"], found["ready_capacity"], found["base_capacity"]) == (1, 1, 1)
    scaled = echo.call("PUT", f"{P}/toy-tone/scale", echo.ada, json={"deployed_model": "toy-tone", "capacity": 2})
    assert (scaled.json()["output"]["status"], scaled.json()["output"]["capacity"]) == ("UPDATING", 2)
    assert until(echo, f"{P}/toy-tone", "RUNNING")["ready_capacity"] == 2
    listed = echo.call("GET", f"{P}?page_no=1&page_size=1", echo.ada).json()["output"]
    assert ([one["deployed_model"] for one in listed["deployments"]], listed["page_size"]) == (["toy-tone"], 1)
    assert echo.call("DELETE", f"{P}/toy-tone", echo.ada).json()["output"] == {"status": "success"}
    deadline = time.monotonic() + 30
    while echo.call("GET", f"{P}/toy-tone", echo.ada).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    status, error = echo.refused("GET", f"{P}/toy-tone", echo.ada)
    assert (status, error["code"]) == (404, "NotFound")


def test_dashscopes_stream_tells_what_changes_until_the_deployment_runs(echo: Api) -> None:
    echo.call("POST", P, echo.ada, json={"model_name": "toy", "name": "followed"})
    answer = echo.call("GET", f"{P}/followed/stream", echo.ada)
    frames = [one for one in answer.text.split("\n\n") if one.startswith("id:")]
    told = [json.loads(frame.split("data:", 1)[1]) for frame in frames]
    assert [frame.split("\n")[0] for frame in frames] == [f"id:{number}" for number in range(1, len(frames) + 1)]
    stages = ["PENDING", "DEPLOYING", "RUNNING"]
    places = [stages.index(one["status"]) for one in told]
    assert places == sorted(places) and told[-1]["status"] == "RUNNING"
    assert all(one["deployed_model"] == "followed" for one in told)
    again = echo.call("GET", f"{P}/followed/stream", echo.ada).text  # it runs: told once
    assert again.count("id:") == 1 and '"status":"RUNNING"' in again
    echo.call("DELETE", f"{P}/followed", echo.ada)
    until_gone(echo, f"{P}/followed")
    assert echo.call("GET", f"{P}/followed/stream", echo.ada).status_code == 404


def test_limits_of_a_deployment_are_not_offered(echo: Api) -> None:
    echo.call("POST", P, echo.ada, json={"model_name": "toy", "name": "unlimited"})
    answer = echo.call("PUT", f"{P}/unlimited/update", echo.ada, json={"rpm_limit": 10})
    assert answer.status_code == 400 and "no limits of its own" in answer.json()["message"]
    assert echo.call("PUT", f"{P}/nobody/update", echo.ada, json={}).status_code == 404
    echo.call("DELETE", f"{P}/unlimited", echo.ada)


def test_what_can_be_deployed_is_listed_by_source(api: Api) -> None:
    def names(source: str) -> list[str]:
        output = api.call("GET", f"{P}/models?{source}", api.bob).json()["output"]
        assert output["total"] == len(output["models"])
        return [model["model_name"] for model in output["models"]]

    assert set(names("model_source=base")) == {EMBEDDED, "toy"}
    assert api.bobs["name"] in names("model_source=custom")
    assert set(names("")) == {*names("model_source=base"), *names("model_source=custom")}


@pytest.mark.parametrize(
    ("sent", "status", "code", "says"),
    [
        ({}, 400, "InvalidParameter", "model_name"),
        ({"model_name": "none"}, 404, "Model.NotExist", "none"),
        ({"model_name": "toy", "capacity": 0}, 400, "InvalidParameter", "from 1 to 64"),
        ({"model_name": "toy", "capacity": 1_000_000}, 400, "InvalidParameter", "from 1 to 64"),
        ({"model_name": "toy", "suffix": "far-too-long"}, 400, "InvalidParameter", "suffix"),
        ({"model_name": "toy", "name": "toy"}, 400, "UnsupportedOperation", "name of a model"),
        ({"model_name": "toy", "name": "a b"}, 400, "InvalidParameter", "letters"),
    ],
)
def test_what_cannot_be_deployed_is_said(api: Api, sent: dict[str, Any], status: int, code: str, says: str) -> None:
    found, error = api.refused("POST", P, api.ada, json=sent)
    assert (found, error["code"]) == (status, code)
    assert says in error["message"]


@pytest.mark.parametrize(
    "sent", [{"model": "toy", "replicas": 2}, {"model": "toy", "capacity": "many"}, {"capacity": 1}]
)
def test_our_own_api_refuses_fields_that_it_does_not_know(api: Api, sent: dict[str, Any]) -> None:
    status, error = api.refused("POST", OURS, api.ada, json=sent)
    assert (status, error["code"]) == (400, "invalid_request")


def test_scaling_needs_a_capacity(api: Api) -> None:
    status, error = api.refused("PUT", f"{P}/{api.bobs['deployment_id']}/scale", api.bob, json={})
    assert (status, error["code"]) == (400, "InvalidParameter")
