"""/fine_tuning/jobs: creating a job as OpenAI's clients do; the other calls are shared."""

from __future__ import annotations

from fastapi import APIRouter

from luthier.api.auth import Asked, Caller
from luthier.api.openai.wire.jobs import CreateJob
from luthier.api.shapes.wire.jobs import FineTuningJob

router = APIRouter(prefix="/fine_tuning/jobs", tags=["Fine-tuning"])


@router.post("", summary="Create a fine-tuning job")
async def create(body: CreateJob, who: Caller, services: Asked) -> FineTuningJob:
    return FineTuningJob.of(await services.jobs.submit(who, body.to_request()))
