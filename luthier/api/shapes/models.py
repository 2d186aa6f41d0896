"""/models: what a client may put in "model"."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from luthier.api.auth import Asked, Caller
from luthier.api.shapes.wire import Model

router = APIRouter(prefix="/models")


@router.get("")
async def list_models(who: Caller, services: Asked) -> dict[str, Any]:
    found = await services.catalog.list(who)
    return {"object": "list", "data": [Model.of(model).model_dump() for model in found]}


@router.get("/{name:path}")
async def retrieve(name: str, who: Caller, services: Asked) -> Model:
    return Model.of(await services.catalog.get(who, name))


@router.delete("/{name:path}")
async def delete(name: str, who: Caller, services: Asked) -> dict[str, Any]:
    await services.catalog.delete(who, name)
    return {"id": name, "object": "model", "deleted": True}
