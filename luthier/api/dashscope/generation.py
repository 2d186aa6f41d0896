"""/services/aigc/text-generation/generation, whole and streamed."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.responses import JSONResponse, Response

from luthier.api import examples
from luthier.api.auth import Asked, Caller
from luthier.api.dashscope.streaming import server_sent_events
from luthier.api.dashscope.wire.envelope import RequestId
from luthier.api.dashscope.wire.generation import Choice, Generated, GenerationRequest, Parameters, usage
from luthier.api.presence import while_present
from luthier.api.shown import in_document
from luthier.api.streaming import EVENT
from luthier.control.inference.service import Delta
from luthier.core.errors import InvalidParameter, InvalidRequest
from luthier.serving.protocol import Finish


async def create(
    body: GenerationRequest,
    who: Caller,
    services: Asked,
    request: Request,
    request_id: RequestId,
    sse: Annotated[str, Header(alias="X-DashScope-SSE", description="enable: stream the answer.")] = "",
) -> Response:
    is_streamed = sse.lower() == "enable" or "text/event-stream" in request.headers.get("accept", "")
    try:
        wanted = replace(body.to_request(), is_whole=not is_streamed)
        answer = await while_present(request, services.inference.complete(who, wanted))
    except InvalidRequest as error:
        raise _named_here(error) from error
    asked = body.parameters or Parameters()
    if is_streamed:
        return server_sent_events(_frames(answer, asked, request_id), request_id)
    choices = await while_present(request, _made(answer, asked))
    return JSONResponse(_answer(choices, asked, request_id))


def _named_here(error: InvalidRequest) -> InvalidRequest:
    """Below the edge a parameter has no more than its own name."""
    name = error.param or ""
    if not isinstance(error, InvalidParameter) or re.split(r"[.\[]", name)[0] not in Parameters.model_fields:
        return error
    return InvalidParameter(f"parameters.{name}", error.message.removeprefix(f"{name}: "), hint=error.hint)


async def _made(answer: AsyncGenerator[Delta, None], asked: Parameters) -> list[Choice]:
    choices = [Choice(index) for index in range(asked.n or 1)]
    async with aclosing(answer):
        async for delta in answer:
            choices[delta.choice].add(delta.part)
    return choices


def _answer(choices: list[Choice], asked: Parameters, request_id: str) -> dict[str, Any]:
    output = choices[0].as_text() if asked.form == "text" else {"choices": [choice.shown() for choice in choices]}
    counted = usage([choice.finish for choice in choices if choice.finish])
    return {"request_id": request_id, "output": output, "usage": counted}


async def _frames(
    answer: AsyncGenerator[Delta, None], asked: Parameters, request_id: str
) -> AsyncGenerator[dict[str, Any], None]:
    """A frame has one of the answers; the last of each has how many tokens it took."""
    choices = [Choice(index) for index in range(asked.n or 1)]
    async with aclosing(answer):
        async for delta in answer:
            choice, part = choices[delta.choice], delta.part
            calls_before = len(choice.calls)
            choice.add(part)
            if asked.incremental_output:
                choice = choice.new(part)
            else:
                calls_before = 0
            output = (
                choice.as_text() if asked.form == "text" else {"choices": [choice.shown(calls_before=calls_before)]}
            )
            frame: dict[str, Any] = {"output": output, "request_id": request_id}
            if isinstance(part, Finish):
                frame["usage"] = usage([part])
            yield frame


def _described() -> dict[int | str, dict[str, Any]]:
    """For the API's document: the answer and its stream, with an example of each."""
    asked, choice = Parameters(result_format="message", incremental_output=True), Choice(0)
    for delta in examples.all_of(examples.deltas()):
        choice.add(delta.part)
    frames = _frames(examples.deltas(), asked, examples.REQUEST_ID)
    stream = examples.events(server_sent_events(frames, examples.REQUEST_ID))
    return {
        200: {
            "model": Generated,
            "description": "The answer; with the header X-DashScope-SSE or Accept: text/event-stream a stream of them.",
            "content": {
                "text/event-stream": {"schema": EVENT, "example": stream},
                **in_document(_answer([choice], asked, examples.REQUEST_ID)),
            },
        }
    }


router = APIRouter(prefix="/services/aigc/text-generation", tags=["generation"])
router.post("/generation", summary="Call a model", response_class=JSONResponse, responses=_described())(create)
