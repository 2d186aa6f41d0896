"""/deployments: create, list, get, scale, delete, the stream of changes, and what can be deployed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from luthier.api import examples
from luthier.api.auth import Asked, Caller
from luthier.api.dashscope.streaming import server_sent_events
from luthier.api.dashscope.wire.deployments import (
    CreateDeployment,
    Deleted,
    Deployable,
    DeployableList,
    Deployment,
    DeploymentList,
    Scale,
)
from luthier.api.dashscope.wire.envelope import Answer, PageNumber, PageSize, RequestId, counts
from luthier.api.streaming import EVENT
from luthier.control.deployments import service
from luthier.core.errors import InvalidParameter, NotOffered

router = APIRouter(prefix="/deployments", tags=["deployments"])


async def _frames(
    found: AsyncGenerator[service.Deployment | None, None],
) -> AsyncGenerator[dict[str, Any] | None, None]:
    async with aclosing(found):
        async for one in found:
            yield Deployment.of(one).model_dump(mode="json") if one else None


_EXAMPLE = examples.events(server_sent_events(_frames(examples.changes_of_deployment()), examples.REQUEST_ID))
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": EVENT, "example": _EXAMPLE}}}
}


@router.post("", summary="Deploy a model")
async def create(body: CreateDeployment, who: Caller, services: Asked, request_id: RequestId) -> Answer[Deployment]:
    made = await services.deployments.create(who, body.model_name, capacity=body.replicas, name=body.private_name)
    return Answer(request_id=request_id, output=Deployment.of(made))


@router.get("", summary="List deployments, the newest first")
async def list_deployments(
    who: Caller, services: Asked, request_id: RequestId, page_no: PageNumber = 1, page_size: PageSize = 10
) -> Answer[DeploymentList]:
    found = await services.deployments.numbered(who, page_no, page_size)
    listed = DeploymentList(deployments=[Deployment.of(one) for one in found.items], **counts(found))
    return Answer(request_id=request_id, output=listed)


@router.get("/models", summary="List what can be deployed")
async def deployable(
    who: Caller,
    services: Asked,
    request_id: RequestId,
    page_no: PageNumber = 1,
    page_size: PageSize = 10,
    model_source: Annotated[
        Literal["base", "custom"] | None, Query(description="custom: what was trained here; absent: both.")
    ] = None,
) -> Answer[DeployableList]:
    every = await services.catalog.list(who)
    found = [one for one in every if model_source in (None, "base" if one.kind == "base" else "custom")]
    first = (page_no - 1) * page_size
    models = [Deployable.of(one) for one in found[first : first + page_size]]
    listed = DeployableList(models=models, page_no=page_no, page_size=page_size, total=len(found))
    return Answer(request_id=request_id, output=listed)


@router.get("/{deployment_id}", summary="Get a deployment")
async def get(deployment_id: str, who: Caller, services: Asked, request_id: RequestId) -> Answer[Deployment]:
    return Answer(request_id=request_id, output=Deployment.of(await services.deployments.get(who, deployment_id)))


@router.put("/{deployment_id}/scale", summary="Change how many replicas answer")
async def scale(
    deployment_id: str, body: Scale, who: Caller, services: Asked, request_id: RequestId
) -> Answer[Deployment]:
    capacity = body.capacity if body.capacity is not None else body.ptu_capacity
    if capacity is None:
        raise InvalidParameter("capacity", "is missing")
    scaled = await services.deployments.scale(who, deployment_id, capacity)
    return Answer(request_id=request_id, output=Deployment.of(scaled))


@router.put("/{deployment_id}/update", summary="Limit how often a deployment is asked: not offered")
async def update(deployment_id: str, who: Caller, services: Asked) -> None:
    await services.deployments.get(who, deployment_id)
    raise NotOffered(
        "A deployment has no limits of its own. Those of a project are the server's settings serving.concurrency_per_project "
        "and serving.waiting_per_project.",
        hint="To have more or fewer replicas, PUT its /scale.",
    )


@router.get(
    "/{deployment_id}/stream", summary="Follow a deployment", response_class=StreamingResponse, responses=_STREAM
)
async def stream(deployment_id: str, who: Caller, services: Asked, request_id: RequestId) -> StreamingResponse:
    """As it is, and again whenever that changes; it ends when the deployment runs, has failed or is gone."""
    return server_sent_events(_frames(await services.deployments.follow(who, deployment_id)), request_id)


@router.delete("/{deployment_id}", summary="Delete a deployment")
async def delete(deployment_id: str, who: Caller, services: Asked, request_id: RequestId) -> Answer[Deleted]:
    """Nobody new is answered from now on; answers that are running have a while to end."""
    await services.deployments.delete(who, deployment_id)
    return Answer(request_id=request_id, output=Deleted())
