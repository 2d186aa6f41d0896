"""One app in this process with two projects, Ada's empty and Bob's with a file, a job and a tuned model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from luthier.app import Parts, build
from luthier.control.accounts.tables import ProjectRow
from luthier.control.catalog.cards import EMBEDDED
from luthier.control.inference.answers import Answer
from luthier.control.inference.tables import AsyncCompletionRow
from luthier.control.tenancy import Principal
from luthier.core import logs
from luthier.core.clock import SystemClock
from luthier.core.settings import ServerSection, Settings
from luthier.testing import InlineExecutor, jsonl, toy_parts, toy_rows
from tests.unit.control.trainers import played, whole

UPLOAD_LIMIT = 200_000


@dataclass
class Api:
    """The app behind a client that checks what every answer must have."""

    app: FastAPI
    parts: Parts
    client: TestClient
    ada: str
    bob: str
    bobs: dict[str, str] = field(default_factory=dict)

    def call(self, method: str, path: str, key: str | None, **sent: Any) -> Any:
        headers = ({"authorization": f"Bearer {key}"} if key else {}) | sent.pop("headers", {})
        answer = self.client.request(method, path, headers=headers, **sent)
        assert answer.headers["x-request-id"].startswith("req-")
        return answer

    def refused(self, method: str, path: str, key: str | None, **sent: Any) -> tuple[int, dict[str, Any]]:
        """The status and the error of a call that must be refused, in the envelope of the path's dialect."""
        answer = self.call(method, path, key, **sent)
        assert answer.status_code >= 400, answer.text
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        if path.startswith("/api/platform/"):
            assert {"code", "message", "hint", "param", "request_id"} <= set(body) | {"problems"}
            assert body["message"] and body["request_id"] == answer.headers["x-request-id"]
            return answer.status_code, body
        if path.startswith("/api/v1/") and not path.startswith("/api/v1/chat/"):
            assert set(body) == {"code", "message", "request_id"}
            assert body["code"] and body["message"] and body["request_id"] == answer.headers["x-request-id"]
            return answer.status_code, body
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["message"]
        kind = "server_error" if answer.status_code >= 500 else "invalid_request_error"
        assert body["error"]["type"] == kind
        return answer.status_code, body["error"]

    def upload(self, key: str, content: bytes) -> str:
        sent = {"files": {"file": ("rows.jsonl", content)}, "data": {"purpose": "fine-tune"}}
        return self.call("POST", "/v1/files", key, **sent).json()["id"]

    def until(self, path: str, key: str, *statuses: str) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if (found := self.call("GET", path, key).json())["status"] in statuses:
                return found
            time.sleep(0.02)
        raise AssertionError(found)


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Iterator[Api]:
    logs.configure("critical")
    folder = tmp_path_factory.mktemp("api")
    parts = toy_parts(folder, InlineExecutor(played(whole)))
    parts.installer.add(EMBEDDED, str(toy_folder))  # in its place, so that nothing is brought from anywhere
    parts.installer.add("toy", str(toy_folder))
    server = ServerSection.model_validate({"data": folder, "upload_limit_bytes": UPLOAD_LIMIT})
    made: list[str] = []
    app = build(Settings.model_construct(None, server=server), parts=parts, announce=made.append)
    with TestClient(app) as client:
        bob = client.portal.call(_second_project, parts)  # type: ignore[union-attr]
        api = Api(app, parts, client, ada=made[0], bob=bob)
        _fill(api)
        yield api


async def _second_project(parts: Parts) -> str:
    async with parts.db.write() as session:
        session.add(ProjectRow(id="proj-zz-bob", name="bob", created_at=SystemClock().now()))
    return await parts.services.accounts.create_key(Principal(id="test", project="proj-zz-bob"), "bob")


async def _answered(parts: Parts) -> str:
    """An asynchronous completion of Bob's that has its answer already; no replica runs here that could make one."""
    completions = parts.services.async_completions
    row = AsyncCompletionRow(
        id="task-bob",
        project_id="proj-zz-bob",
        key_id="test",
        request_id="bobs",
        model="toy",
        status="processing",
        request={},
        created_at=SystemClock().now(),
    )
    completions.succeed(row, [Answer(text="Hi", prompt_tokens=1, completion_tokens=2)])
    async with parts.db.write() as session:
        session.add(row)
    return row.id


async def _deployed(parts: Parts) -> str:
    """A deployment of Bob's; no replica runs here that could answer for it."""
    return (await parts.services.deployments.create(Principal("test", "proj-zz-bob"), "toy", name="bobs")).id


def _fill(api: Api) -> None:
    file = api.upload(api.bob, jsonl(toy_rows(12)))
    job = api.call("POST", "/v1/fine_tuning/jobs", api.bob, json={"model": "toy", "training_file": file}).json()["id"]
    done = api.until(f"/v1/fine_tuning/jobs/{job}", api.bob, "succeeded", "failed")
    checkpoints = api.call("GET", f"/v1/fine_tuning/jobs/{job}/checkpoints", api.bob).json()["data"]
    sent = {"bytes": 8, "filename": "rows.jsonl", "purpose": "fine-tune", "mime_type": "application/jsonl"}
    upload = api.call("POST", "/v1/uploads", api.bob, json=sent).json()["id"]
    part = api.call("POST", f"/v1/uploads/{upload}/parts", api.bob, files={"data": b"rows"}).json()["id"]
    deployment = api.client.portal.call(_deployed, api.parts)  # type: ignore[union-attr]
    task = api.client.portal.call(_answered, api.parts)  # type: ignore[union-attr]
    api.bobs = {
        "deployment_id": deployment,
        "task_id": task,
        "upload_id": upload,
        "part_id": part,
        "file_id": file,
        "job_id": job,
        "name": done["fine_tuned_model"],
        "checkpoint": checkpoints[0]["fine_tuned_model_checkpoint"],
    }
