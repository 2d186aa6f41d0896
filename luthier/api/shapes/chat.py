"""/chat/completions, whole and streamed."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from luthier.api.auth import Asked, Caller
from luthier.api.shapes import errors
from luthier.api.shapes.wire import ChatRequest, chunk, completion, usage
from luthier.api.streaming import server_sent_events
from luthier.control.inference.service import Delta
from luthier.core import ids
from luthier.serving.protocol import Finish

router = APIRouter()


@router.post("/chat/completions")
async def create(body: ChatRequest, who: Caller, services: Asked, request: Request) -> Response:
    answer = await services.inference.complete(who, body.to_request())
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        return server_sent_events(_chunks(answer, body.model, with_usage), errors.body)
    return await _whole(answer, body.model, request)


async def _whole(answer: AsyncGenerator[Delta, None], model: str, request: Request) -> Response:
    """Collect the answer; a caller who has gone away stops it."""
    text: list[str] = []
    async with aclosing(answer):
        async for delta in answer:
            if isinstance(delta.part, Finish):
                return JSONResponse(completion(ids.new("chatcmpl"), model, "".join(text), delta.part))
            text.append(delta.part.text)
            if await request.is_disconnected():
                break
    return Response(status_code=499)


async def _chunks(
    answer: AsyncGenerator[Delta, None], model: str, with_usage: bool
) -> AsyncGenerator[dict[str, Any], None]:
    completion_id, created = ids.new("chatcmpl"), int(time.time())
    more: dict[str, Any] = {"usage": None} if with_usage else {}
    async with aclosing(answer):
        yield chunk(completion_id, model, created, {"role": "assistant", "content": ""}, **more)
        async for delta in answer:
            if isinstance(delta.part, Finish):
                yield chunk(completion_id, model, created, {}, delta.part.reason, **more)
                if with_usage:
                    yield chunk(completion_id, model, created, None, usage=usage(delta.part))
            else:
                yield chunk(completion_id, model, created, {"content": delta.part.text}, **more)
