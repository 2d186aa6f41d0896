"""/completions: a text is continued, without turns."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from luthier.api import examples
from luthier.api.auth import Asked, Caller
from luthier.api.openai.errors import table
from luthier.api.openai.fingerprint import FINGERPRINT
from luthier.api.openai.wire.completions import Completion, CreateCompletion, Offsets, choice, logprobs
from luthier.api.presence import while_present
from luthier.api.shapes.gathering import gathered
from luthier.api.shapes.wire.answers import usage_of, usage_of_all
from luthier.api.shown import in_document
from luthier.api.streaming import EVENT, server_sent_events
from luthier.control.inference.answers import Answer
from luthier.control.inference.service import CompletionRequest, Delta
from luthier.core import ids
from luthier.serving.protocol import Finish

Complete = Callable[[CompletionRequest], Awaitable[AsyncGenerator[Delta, None]]]


async def create(body: CreateCompletion, who: Caller, services: Asked, request: Request) -> Response:
    """Several prompts are answered one after the other."""
    first, *others = body.to_requests()
    # What the first prompt is refused for is told before a stream begins; the others' faults end it.
    deltas = await while_present(request, services.inference.complete(who, first))
    if body.stream:
        complete = partial(services.inference.complete, who)
        return server_sent_events(_chunks(deltas, first, others, body, complete), table.body)
    choices: list[dict[str, Any]] = []
    used: list[dict[str, Any]] = []
    for asked in (first, *others):
        if asked is not first:
            deltas = await while_present(request, services.inference.complete(who, asked))
        answers = await gathered(request, deltas, body.answers, with_logprobs=body.logprobs is not None)
        choices += [_choice(len(choices) + place, answer, asked, body) for place, answer in enumerate(answers)]
        used.append(usage_of(answers))
    return JSONResponse(_whole(body, choices, usage_of_all(used)))


def _whole(body: CreateCompletion, choices: list[dict[str, Any]], used: dict[str, Any]) -> dict[str, Any]:
    return {**_head(body), "choices": choices, "usage": used}


def _choice(index: int, answer: Answer, asked: CompletionRequest, body: CreateCompletion) -> dict[str, Any]:
    told = None
    if answer.logprobs is not None:
        told = logprobs(answer.logprobs, body.logprobs or 0, Offsets(len(body.opening(asked))))
    return choice(index, body.opening(asked) + answer.text, answer.reason, told)


async def _chunks(
    deltas: AsyncGenerator[Delta, None],
    first: CompletionRequest,
    others: list[CompletionRequest],
    body: CreateCompletion,
    complete: Complete,
) -> AsyncGenerator[dict[str, Any], None]:
    made = _head(body)
    unknown = {"usage": None} if body.wants_usage else {}
    used: list[dict[str, Any]] = []
    for number, asked in enumerate((first, *others)):
        if number:
            deltas = await complete(asked)
        begins = number * body.answers
        offsets = [Offsets(len(body.opening(asked))) for _ in range(body.answers)]
        async with aclosing(deltas):
            if opening := body.opening(asked):
                for index in range(body.answers):
                    yield {**made, "choices": [choice(begins + index, opening, None, None)], **unknown}
            finishes: list[Finish] = []
            async for delta in deltas:
                part, index = delta.part, begins + delta.choice
                if isinstance(part, Finish):
                    finishes.append(part)
                    yield {**made, "choices": [choice(index, "", part.reason, None)], **unknown}
                    continue
                told = None
                if body.logprobs is not None and part.logprobs:
                    told = logprobs(part.logprobs, body.logprobs, offsets[delta.choice])
                yield {**made, "choices": [choice(index, part.text, None, told)], **unknown}
        used.append(usage_of(finishes))
    if body.wants_usage:
        yield {**made, "choices": [], "usage": usage_of_all(used)}


def _head(body: CreateCompletion) -> dict[str, Any]:
    return {
        "id": ids.new("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": FINGERPRINT,
    }


def _described() -> dict[int | str, dict[str, Any]]:
    """For the API's document: the answer and its stream, with an example of each."""
    body = CreateCompletion(model=examples.BASE.name, prompt="Which city is the capital of France?")
    [asked] = body.to_requests()
    is_made = {"id": "cmpl-01k7m3v5c8t9x2r4w6y8z0aa", "created": int(examples.MADE_AT.timestamp())}
    answer = examples.ANSWER

    async def frames() -> AsyncGenerator[dict[str, Any], None]:
        async for frame in _chunks(examples.deltas(), asked, [], body, examples.complete):
            yield frame | is_made

    whole = _whole(body, [_choice(0, answer, asked, body)], usage_of([answer]))
    stream = server_sent_events(frames(), table.body)
    return {
        200: {
            "model": Completion,
            "description": "The answer; with `stream` its chunks as server-sent events, then `data: [DONE]`.",
            "content": {
                "text/event-stream": {"schema": EVENT, "example": examples.events(stream)},
                **in_document(whole | is_made),
            },
        }
    }


router = APIRouter(tags=["Completions"])
router.post("/completions", summary="Continue a text", responses=_described())(create)
