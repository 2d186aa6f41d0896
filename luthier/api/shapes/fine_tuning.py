"""/fine_tuning/jobs: create, list, retrieve, cancel, events, checkpoints."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from luthier.api.auth import Asked, Caller
from luthier.api.shapes.wire import CreateJob, FineTuningCheckpoint, FineTuningEvent, FineTuningJob, page
from luthier.core.errors import NotOffered
from luthier.core.pages import PageRequest

router = APIRouter(prefix="/fine_tuning/jobs")

Limit = Annotated[int, Query(ge=1)]


@router.post("")
async def create(body: CreateJob, who: Caller, services: Asked) -> FineTuningJob:
    return FineTuningJob.of(await services.jobs.submit(who, body.to_request()))


@router.get("")
async def list_jobs(
    who: Caller, services: Asked, request: Request, after: str | None = None, limit: Limit = 20
) -> dict[str, Any]:
    if any(name.startswith("metadata") for name in request.query_params):
        raise NotOffered("Listing jobs by metadata is not offered by this version.", param="metadata")
    found = await services.jobs.list(who, PageRequest(min(limit, 100), after))
    return page([FineTuningJob.of(job) for job in found.items], found.has_more)


@router.get("/{job_id}")
async def retrieve(job_id: str, who: Caller, services: Asked) -> FineTuningJob:
    return FineTuningJob.of(await services.jobs.get(who, job_id))


@router.post("/{job_id}/cancel")
async def cancel(job_id: str, who: Caller, services: Asked) -> FineTuningJob:
    return FineTuningJob.of(await services.jobs.cancel(who, job_id))


@router.get("/{job_id}/events")
async def events(
    job_id: str, who: Caller, services: Asked, after: str | None = None, limit: Limit = 20
) -> dict[str, Any]:
    found = await services.jobs.events(who, job_id, PageRequest(min(limit, 1000), after))
    return page([FineTuningEvent.of(event) for event in found.items], found.has_more)


@router.get("/{job_id}/checkpoints")
async def checkpoints(
    job_id: str, who: Caller, services: Asked, after: str | None = None, limit: Limit = 10
) -> dict[str, Any]:
    found = await services.jobs.checkpoints(who, job_id, PageRequest(min(limit, 100), after))
    return page([FineTuningCheckpoint.of(one) for one in found.items], found.has_more)
