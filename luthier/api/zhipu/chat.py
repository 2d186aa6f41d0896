"""/chat/completions as Zhipu answers it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.api.auth import Asked, Caller
from luthier.api.presence import while_present
from luthier.api.shapes import chat
from luthier.api.streaming import server_sent_events
from luthier.api.zhipu.errors import table
from luthier.api.zhipu.request_id import request_id_of
from luthier.api.zhipu.wire.chat import ChatRequest

router = APIRouter(tags=["Chat"])


def style(request_id: str) -> chat.Style:
    """A stream's usage rides on its last chunk, since programs of this family read `choices[0]` of every one."""
    return chat.Style({"request_id": request_id}, usage_on_last_choice=True)


_DESCRIBED = chat.described(style("mine-1"), table.body)


@router.post("/chat/completions", summary="Answer a conversation", responses=_DESCRIBED)
async def create(body: ChatRequest, who: Caller, services: Asked, request: Request) -> Response:
    shown = style(request_id_of(request, body.request_id))
    deltas = await while_present(request, services.inference.complete(who, body.to_request()))
    if body.stream:
        return server_sent_events(chat.chunks(deltas, body, shown), table.body)
    return await chat.whole(deltas, body, shown, request)
