"""/fine-tunes: create, list, get, cancel, delete, logs, the stream of events, checkpoints."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from luthier.api import examples
from luthier.api.auth import Asked, Caller
from luthier.api.dashscope.streaming import server_sent_events
from luthier.api.dashscope.wire.envelope import Answer, PageNumber, PageSize, RequestId, counts
from luthier.api.dashscope.wire.fine_tunes import (
    CreateFineTune,
    Done,
    FineTune,
    FineTuneCheckpoint,
    FineTuneList,
    Log,
    event,
)
from luthier.api.streaming import EVENT
from luthier.control.jobs.values import JobEvent
from luthier.core.errors import NotOffered
from luthier.core.pages import PageRequest

router = APIRouter(prefix="/fine-tunes", tags=["fine-tunes"])


async def _events(found: AsyncGenerator[JobEvent | None, None]) -> AsyncGenerator[dict[str, Any] | None, None]:
    async with aclosing(found):
        async for one in found:
            yield event(one) if one else None


_EXAMPLE = examples.events(server_sent_events(_events(examples.events_of_job()), examples.REQUEST_ID))
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": EVENT, "example": _EXAMPLE}}}
}


@router.post("", summary="Create a job")
async def create(body: CreateFineTune, who: Caller, services: Asked, request_id: RequestId) -> Answer[FineTune]:
    job = await services.jobs.submit(who, body.to_request())
    return Answer(request_id=request_id, output=FineTune.of(job))


@router.get("", summary="List jobs, the newest first")
async def list_jobs(
    who: Caller,
    services: Asked,
    request_id: RequestId,
    page_no: PageNumber = 1,
    page_size: PageSize = 10,
    model: Annotated[str | None, Query(description="Only jobs that train this base model.")] = None,
) -> Answer[FineTuneList]:
    found = await services.jobs.numbered(who, page_no, page_size, base_model=model)
    listed = FineTuneList(jobs=[FineTune.of(job) for job in found.items], **counts(found))
    return Answer(request_id=request_id, output=listed)


@router.get("/{job_id}", summary="Get a job")
async def get(job_id: str, who: Caller, services: Asked, request_id: RequestId) -> Answer[FineTune]:
    return Answer(request_id=request_id, output=FineTune.of(await services.jobs.get(who, job_id)))


@router.post("/{job_id}/cancel", summary="Cancel a job")
async def cancel(job_id: str, who: Caller, services: Asked, request_id: RequestId) -> Answer[Done]:
    await services.jobs.cancel(who, job_id)
    return Answer(request_id=request_id, output=Done())


@router.delete("/{job_id}", summary="Delete a job")
async def delete(job_id: str, who: Caller, services: Asked, request_id: RequestId) -> Answer[Done]:
    """What it made stays."""
    await services.jobs.delete(who, job_id)
    return Answer(request_id=request_id, output=Done())


@router.get("/{job_id}/logs", summary="Read a job's log")
async def logs(
    job_id: str,
    who: Caller,
    services: Asked,
    request_id: RequestId,
    offset: Annotated[int, Query(ge=0, le=2**31, description="Lines to leave out; line 0 is a header.")] = 0,
    line: Annotated[int, Query(ge=1, le=1000, description="Lines to give at most.")] = 100,
) -> Answer[Log]:
    lines = await services.jobs.log(who, job_id, offset=offset, lines=line)
    return Answer(request_id=request_id, output=Log(total=len(lines), logs=lines))


@router.get("/{job_id}/stream", summary="Follow a job's events", response_class=StreamingResponse, responses=_STREAM)
async def stream(job_id: str, who: Caller, services: Asked, request_id: RequestId) -> StreamingResponse:
    """All events, the oldest first, and more as they happen; it ends when the job has ended."""
    return server_sent_events(_events(await services.jobs.follow(who, job_id)), request_id)


@router.get("/{job_id}/checkpoints", summary="List a job's checkpoints")
async def checkpoints(
    job_id: str, who: Caller, services: Asked, request_id: RequestId
) -> Answer[list[FineTuneCheckpoint]]:
    """The newest thousand, the newest first."""
    found = await services.jobs.checkpoints(who, job_id, PageRequest(1000))
    return Answer(request_id=request_id, output=[FineTuneCheckpoint.of(one) for one in found.items])


@router.get("/{job_id}/export/{checkpoint}", summary="Publish a checkpoint: not offered")
async def export(job_id: str, checkpoint: str, who: Caller, services: Asked) -> Answer[bool]:
    await services.jobs.get(who, job_id)
    raise NotOffered(
        f"Checkpoints are not exported: where its method is shared, {checkpoint!r} can be called at once.",
        hint="Its model_name is in the list of the job's checkpoints.",
    )
