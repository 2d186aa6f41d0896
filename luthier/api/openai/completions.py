"""/completions: a text is continued, without turns."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from luthier.api.auth import Asked, Caller
from luthier.api.openai.errors import table
from luthier.api.openai.fingerprint import FINGERPRINT
from luthier.api.openai.wire.completions import Completion, CreateCompletion, Offsets, choice, logprobs
from luthier.api.presence import while_present
from luthier.api.shapes.gathering import gathered
from luthier.api.shapes.wire.answers import usage
from luthier.api.streaming import EVENT, server_sent_events
from luthier.control.inference.answers import Answer
from luthier.control.inference.service import CompletionRequest, Delta
from luthier.control.tenancy import Principal
from luthier.core import ids
from luthier.services import Services
from luthier.serving.protocol import Finish

router = APIRouter(tags=["Completions"])

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Completion,
        "description": "The answer; with `stream` its chunks as server-sent events, then `data: [DONE]`.",
        "content": {"text/event-stream": {"schema": EVENT}},
    }
}


@router.post("/completions", summary="Continue a text", responses=_ANSWERS)
async def create(body: CreateCompletion, who: Caller, services: Asked, request: Request) -> Response:
    """Several prompts are answered one after the other."""
    first, *others = body.to_requests()
    # What the first prompt is refused for is told before a stream begins; the others' faults end it.
    deltas = await while_present(request, services.inference.complete(who, first))
    if body.stream:
        return server_sent_events(_chunks(deltas, first, others, body, who, services), table.body)
    choices: list[dict[str, Any]] = []
    prompt_tokens = completion_tokens = 0
    for asked in (first, *others):
        if asked is not first:
            deltas = await while_present(request, services.inference.complete(who, asked))
        answers = await gathered(request, deltas, body.answers, with_logprobs=body.logprobs is not None)
        if answers is None:
            return Response(status_code=499)
        choices += [_choice(len(choices) + place, answer, asked, body) for place, answer in enumerate(answers)]
        prompt_tokens += answers[0].prompt_tokens
        completion_tokens += sum(answer.completion_tokens for answer in answers)
    return JSONResponse({**_head(body), "choices": choices, "usage": usage(prompt_tokens, completion_tokens)})


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
    who: Principal,
    services: Services,
) -> AsyncGenerator[dict[str, Any], None]:
    made = _head(body)
    unknown = {"usage": None} if body.wants_usage else {}
    prompt_tokens = completion_tokens = 0
    for number, asked in enumerate((first, *others)):
        if number:
            deltas = await services.inference.complete(who, asked)
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
        prompt_tokens += finishes[0].prompt_tokens
        completion_tokens += sum(finish.completion_tokens for finish in finishes)
    if body.wants_usage:
        yield {**made, "choices": [], "usage": usage(prompt_tokens, completion_tokens)}


def _head(body: CreateCompletion) -> dict[str, Any]:
    return {
        "id": ids.new("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": FINGERPRINT,
    }
