"""/chat/completions: an answer whole or as a stream; what the families do differently is a Style."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from luthier.api import examples
from luthier.api.shapes.gathering import gathered
from luthier.api.shapes.wire import answers
from luthier.api.shapes.wire.answers import ChatCompletion, chunk_choice
from luthier.api.shapes.wire.chat import ChatRequest
from luthier.api.shown import in_document
from luthier.api.streaming import EVENT, server_sent_events
from luthier.control.inference.answers import Answer
from luthier.control.inference.service import Delta
from luthier.core import ids
from luthier.core.errors import LuthierError
from luthier.serving.protocol import Finish


@dataclass(frozen=True)
class Style:
    """How a family answers this request. `more` are fields of every answer and chunk.

    `usage_on_last_choice`: usage rides on the last chunk that has a choice, whether or not it was asked for.
    """

    more: dict[str, Any] = field(default_factory=dict)
    usage_on_last_choice: bool = False


def described(style: Style, error_body: Callable[[LuthierError], dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """For the API's document: the answer and its stream, with an example of each."""
    body = ChatRequest.model_validate({"model": examples.BASE.name, "messages": [{"role": "user", "content": "?"}]})
    is_made = {"id": "chatcmpl-01k7m3v5c8t9x2r4w6y8z0aa", "created": int(examples.MADE_AT.timestamp())}

    async def frames() -> AsyncGenerator[dict[str, Any], None]:
        async for frame in chunks(examples.deltas(), body, style):
            yield frame | is_made

    stream = server_sent_events(frames(), error_body)
    return {
        200: {
            "model": ChatCompletion,
            "description": "The answer; with `stream` its chunks as server-sent events, then `data: [DONE]`.",
            "content": {
                "text/event-stream": {"schema": EVENT, "example": examples.events(stream)},
                **in_document(completion([examples.ANSWER], body, style) | is_made),
            },
        }
    }


async def whole(deltas: AsyncGenerator[Delta, None], body: ChatRequest, style: Style, request: Request) -> Response:
    made = await gathered(request, deltas, body.answers, with_logprobs=bool(body.logprobs))
    return JSONResponse(completion(made, body, style))


def completion(made: list[Answer], body: ChatRequest, style: Style) -> dict[str, Any]:
    choices = [answers.choice(index, one, calls_functions=body.calls_functions) for index, one in enumerate(made)]
    return {
        "id": ids.new("chatcmpl"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model,
        **style.more,
        "choices": choices,
        "usage": answers.usage_of(made),
    }


async def chunks(
    deltas: AsyncGenerator[Delta, None], body: ChatRequest, style: Style
) -> AsyncGenerator[dict[str, Any], None]:
    """The frames of a stream: for every choice first its role, then what is made of it, then why it ended."""
    made = {
        "id": ids.new("chatcmpl"),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": body.model,
        **style.more,
    }
    unknown = {"usage": None} if body.wants_usage else {}
    finishes: list[Finish] = []
    calls = [0] * body.answers
    async with aclosing(deltas):
        for index in range(body.answers):
            yield {**made, "choices": [chunk_choice(index, {"role": "assistant", "content": ""})], **unknown}
        async for delta in deltas:
            index, part = delta.choice, delta.part
            if isinstance(part, Finish):
                finishes.append(part)
                reason = answers.reason(part.reason, calls_functions=body.calls_functions)
                is_last = style.usage_on_last_choice and len(finishes) == body.answers
                told = {"usage": answers.usage_of(finishes)} if is_last else unknown
                yield {**made, "choices": [chunk_choice(index, {}, reason)], **told}
                continue
            logprobs = answers.logprobs(part.logprobs) if body.logprobs and part.logprobs else None
            if part.text or logprobs:
                yield {**made, "choices": [chunk_choice(index, {"content": part.text}, None, logprobs)], **unknown}
            for call in part.tool_calls:
                told = _call(answers.called(call), calls[index], body)
                calls[index] += 1
                yield {**made, "choices": [chunk_choice(index, told)], **unknown}
        if body.wants_usage:
            yield {**made, "choices": [], "usage": answers.usage_of(finishes)}


def _call(call: dict[str, Any], number: int, body: ChatRequest) -> dict[str, Any]:
    """A call is told in one piece; without its number the clients' own helpers for streams fail."""
    if body.calls_functions:
        return {"function_call": call["function"]}
    return {"tool_calls": [{"index": number, **call}]}
