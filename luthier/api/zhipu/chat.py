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


@router.post("/chat/completions", summary="Answer a conversation", responses=chat.DESCRIBED)
async def create(body: ChatRequest, who: Caller, services: Asked, request: Request) -> Response:
    """A stream's usage rides on its last chunk, since programs of this family read `choices[0]` of every one."""
    style = chat.Style({"request_id": request_id_of(request, body.request_id)}, usage_on_last_choice=True)
    deltas = await while_present(request, services.inference.complete(who, body.to_request()))
    if body.stream:
        return server_sent_events(chat.chunks(deltas, body, style), table.body)
    return await chat.whole(deltas, body, style, request)
