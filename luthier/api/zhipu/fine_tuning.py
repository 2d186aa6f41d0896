"""/fine_tuning: creating a job as Zhipu's client does, and the end of a fine-tuned model; the other calls are shared."""

from __future__ import annotations

from fastapi import APIRouter, Request

from luthier.api.auth import Asked, Caller
from luthier.api.shapes.wire.jobs import FineTuningJob
from luthier.api.zhipu.request_id import request_id_of
from luthier.api.zhipu.wire.jobs import CreateJob, DeletedModel

router = APIRouter(prefix="/fine_tuning", tags=["Fine-tuning"])


@router.post("/jobs", summary="Create a fine-tuning job")
async def create(body: CreateJob, who: Caller, services: Asked) -> FineTuningJob:
    return FineTuningJob.of(await services.jobs.submit(who, body.to_request()))


@router.delete("/fine_tuned_models/{name:path}", summary="Delete a fine-tuned model")
async def delete_model(name: str, who: Caller, services: Asked, request: Request) -> DeletedModel:
    await services.deployments.delete_model(who, name)
    return DeletedModel(request_id=request_id_of(request, None), model_name=name)
