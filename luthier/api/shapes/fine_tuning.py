"""/fine_tuning/jobs: list, retrieve, pause, resume, cancel, delete, events, checkpoints; creating one is each dialect's own."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from luthier.api.auth import Asked, Caller
from luthier.api.shapes.wire.base import ListPage, page
from luthier.api.shapes.wire.jobs import FineTuningCheckpoint, FineTuningEvent, FineTuningJob
from luthier.core.errors import InvalidParameter
from luthier.core.pages import PageRequest

router = APIRouter(prefix="/fine_tuning/jobs", tags=["Fine-tuning"])

Limit = Annotated[int, Query(ge=1)]


@router.get("", summary="List jobs, newest first", response_model=ListPage[FineTuningJob])
async def list_jobs(
    who: Caller,
    services: Asked,
    request: Request,
    after: str | None = None,
    limit: Limit = 20,
    metadata: Annotated[
        str | None,
        Query(
            description="null: jobs without metadata. Pairs that a job must have are asked for as metadata[key]=value."
        ),
    ] = None,
) -> dict[str, Any]:
    found = await services.jobs.list(
        who,
        PageRequest(min(limit, 100), after),
        metadata=_pairs(request) or None,
        without_metadata=_is_null(metadata),
    )
    return page([FineTuningJob.of(job) for job in found.items], found.has_more)


@router.get("/{job_id}", summary="Retrieve a job")
async def retrieve(job_id: str, who: Caller, services: Asked) -> FineTuningJob:
    return FineTuningJob.of(await services.jobs.get(who, job_id))


@router.delete("/{job_id}", summary="Delete a job that has no process; it is answered as it was")
async def delete(job_id: str, who: Caller, services: Asked) -> FineTuningJob:
    return FineTuningJob.of(await services.jobs.delete(who, job_id))


@router.post("/{job_id}/cancel", summary="Stop a job for good")
async def cancel(job_id: str, who: Caller, services: Asked) -> FineTuningJob:
    return FineTuningJob.of(await services.jobs.cancel(who, job_id))


@router.post("/{job_id}/pause", summary="Stop a job at a checkpoint from which it can go on")
async def pause(job_id: str, who: Caller, services: Asked) -> FineTuningJob:
    return FineTuningJob.of(await services.jobs.pause(who, job_id))


@router.post("/{job_id}/resume", summary="Let a paused job go on")
async def resume(job_id: str, who: Caller, services: Asked) -> FineTuningJob:
    return FineTuningJob.of(await services.jobs.resume(who, job_id))


@router.get(
    "/{job_id}/events", summary="What happened to a job, newest first", response_model=ListPage[FineTuningEvent]
)
async def events(
    job_id: str, who: Caller, services: Asked, after: str | None = None, limit: Limit = 20
) -> dict[str, Any]:
    found = await services.jobs.events(who, job_id, PageRequest(min(limit, 1000), after))
    return page([FineTuningEvent.of(event) for event in found.items], found.has_more)


@router.get(
    "/{job_id}/checkpoints",
    summary="What a job has saved, newest first",
    response_model=ListPage[FineTuningCheckpoint],
)
async def checkpoints(
    job_id: str, who: Caller, services: Asked, after: str | None = None, limit: Limit = 10
) -> dict[str, Any]:
    found = await services.jobs.checkpoints(who, job_id, PageRequest(min(limit, 100), after))
    return page([FineTuningCheckpoint.of(one) for one in found.items], found.has_more)


_PAIR = re.compile(r"metadata\[(.*)\]", re.DOTALL)


def _pairs(request: Request) -> dict[str, str]:
    """Bracketed names of the query, which no framework reads."""
    found = ((_PAIR.fullmatch(name), value) for name, value in request.query_params.multi_items())
    return {match[1]: value for match, value in found if match is not None}


def _is_null(metadata: str | None) -> bool:
    if metadata not in (None, "", "null"):
        raise InvalidParameter("metadata", f"must be null, or pairs as metadata[key]=value, got {metadata!r}")
    return metadata is not None
