"""Nothing is made for a caller who has gone away, also before the first word of his answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from luthier.control.inference.service import Inference
from tests.unit.api.conftest import Api

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"model": "toy", "prompt": "Hi"},
    "/api/paas/v4/chat/completions": {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]},
    "/api/v1/services/aigc/text-generation/generation": {"model": "toy", "input": {"prompt": "Hi"}},
}


@pytest.mark.parametrize("path", BODIES)
def test_work_that_nobody_waits_for_is_cancelled(api: Api, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = asyncio.Event(), []

    async def complete(self: Inference, who: Any, request: Any) -> Any:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(path)
            raise

    monkeypatch.setattr(Inference, "complete", complete)
    body = [{"type": "http.request", "body": json.dumps(BODIES[path]).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    async def ask() -> None:
        headers = [(b"authorization", f"Bearer {api.ada}".encode()), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        whole = scope | {"headers": headers, "http_version": "1.1", "scheme": "http", "root_path": ""}
        await asyncio.wait_for(api.app(whole | {"client": ("1", 1), "server": ("1", 1)}, receive, send), 30)

    api.client.portal.call(ask)  # type: ignore[union-attr]
    assert ended == [path]
