"""/async/chat/completions and /async-result: an answer that is asked for now and fetched later."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from luthier.api.auth import Asked, Caller
from luthier.api.zhipu.request_id import request_id_of
from luthier.api.zhipu.wire.async_completions import AsyncResult, AsyncTask, result
from luthier.api.zhipu.wire.chat import ChatRequest

router = APIRouter(tags=["Chat"])


@router.post("/async/chat/completions", summary="Have a conversation answered in the background")
async def create(body: ChatRequest, who: Caller, services: Asked, request: Request) -> AsyncTask:
    request_id = request_id_of(request, body.request_id)
    completion = await services.async_completions.submit(
        who, body.to_request(), request_id=request_id, calls_functions=body.calls_functions
    )
    return AsyncTask.of(completion)


@router.get(
    "/async-result/{task_id}",
    summary="The answer, once it is there; it is kept for a day",
    responses={200: {"model": AsyncResult}},
)
async def retrieve(task_id: str, who: Caller, services: Asked) -> JSONResponse:
    return JSONResponse(result(await services.async_completions.get(who, task_id)))
