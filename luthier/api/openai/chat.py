"""/chat/completions as OpenAI answers it; mounted twice, since one client of DashScope's asks for it below another prefix."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.api.auth import Asked, Caller
from luthier.api.openai.errors import table
from luthier.api.openai.fingerprint import FINGERPRINT
from luthier.api.openai.wire.chat import ChatRequest
from luthier.api.presence import while_present
from luthier.api.shapes import chat
from luthier.api.shapes.errors import described
from luthier.api.streaming import server_sent_events
from luthier.core.errors import NotFound

_STYLE = chat.Style({"system_fingerprint": FINGERPRINT})


async def create(body: ChatRequest, who: Caller, services: Asked, request: Request) -> Response:
    deltas = await while_present(request, services.inference.complete(who, body.to_request()))
    if body.stream:
        return server_sent_events(chat.chunks(deltas, body, _STYLE), table.body)
    return await chat.whole(deltas, body, _STYLE, request)


async def list_kept(who: Caller) -> Response:
    raise NotFound("Completions are not kept, so that there are none to list.")


def at(path: str) -> APIRouter:
    """The routes of this file, at that path."""
    router = APIRouter(tags=["Chat"], responses=described(table))
    router.post(path, summary="Answer a conversation", responses=chat.described(_STYLE, table.body))(create)
    router.get(path, include_in_schema=False)(list_kept)
    return router
