"""/models: what a client may put in "model"."""

from __future__ import annotations

from fastapi import APIRouter

from luthier.api.auth import Asked, Caller
from luthier.api.shapes.wire.base import Deleted
from luthier.api.shapes.wire.models import Model, ModelList

router = APIRouter(prefix="/models", tags=["Models"])


@router.get("", summary="List the models: base models, and those that were trained here")
async def list_models(who: Caller, services: Asked) -> ModelList:
    return ModelList(data=[Model.of(model) for model in await services.catalog.list(who)])


@router.get("/{name:path}", summary="Retrieve a model")
async def retrieve(name: str, who: Caller, services: Asked) -> Model:
    return Model.of(await services.catalog.get(who, name))


@router.delete("/{name:path}", summary="Delete a fine-tuned model")
async def delete(name: str, who: Caller, services: Asked) -> Deleted:
    await services.catalog.delete(who, name)
    return Deleted(id=name, object="model")
