"""/deployments: models on replicas of their own."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from luthier.api.auth import Asked, Caller
from luthier.api.platform.wire import CreateDeployment, Deployment, Deployments, Scale
from luthier.core.pages import PageRequest

router = APIRouter(prefix="/deployments")


@router.post("")
async def create(body: CreateDeployment, who: Caller, services: Asked) -> Deployment:
    """Have replicas answer with a base model, a tuned model or a checkpoint. Answers at once; `status` tells how far it is."""
    return Deployment.of(await services.deployments.create(who, body.model, capacity=body.capacity, name=body.name))


@router.get("")
async def list_deployments(
    who: Caller,
    services: Asked,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="The id of the last one of the page before.")] = None,
) -> Deployments:
    """The newest first."""
    found = await services.deployments.list(who, PageRequest(limit, after))
    return Deployments(data=[Deployment.of(one) for one in found.items], has_more=found.has_more)


@router.get("/{deployment_id}")
async def retrieve(deployment_id: str, who: Caller, services: Asked) -> Deployment:
    """By its id or its name."""
    return Deployment.of(await services.deployments.get(who, deployment_id))


@router.patch("/{deployment_id}")
async def change(deployment_id: str, body: Scale, who: Caller, services: Asked) -> Deployment:
    """Have more or fewer replicas; no request fails by it."""
    return Deployment.of(await services.deployments.scale(who, deployment_id, body.capacity))


@router.delete("/{deployment_id}")
async def delete(deployment_id: str, who: Caller, services: Asked) -> Deployment:
    """Nobody new is answered from now on; answers that are running have a while to end."""
    return Deployment.of(await services.deployments.delete(who, deployment_id))
