"""/models: what a client may put in "model"."""

from __future__ import annotations

from fastapi import APIRouter

from luthier.api import examples
from luthier.api.auth import Asked, Caller
from luthier.api.shapes.wire.base import Deleted
from luthier.api.shapes.wire.models import Model, ModelList
from luthier.api.shown import as_json, in_document

router = APIRouter(prefix="/models", tags=["Models"])


@router.get("", summary="List the models: base models, and those that were trained here")
async def list_models(who: Caller, services: Asked) -> ModelList:
    return ModelList(data=[Model.of(model) for model in await services.catalog.list(who)])


@router.get("/{name:path}", summary="Retrieve a model")
async def retrieve(name: str, who: Caller, services: Asked) -> Model:
    return Model.of(await services.catalog.get(who, name))


_GONE = Deleted(id=examples.TUNED.name, object="model")


@router.delete(
    "/{name:path}", summary="Delete a fine-tuned model", responses={200: {"content": in_document(as_json(_GONE))}}
)
async def delete(name: str, who: Caller, services: Asked) -> Deleted:
    await services.deployments.delete_model(who, name)
    return Deleted(id=name, object="model")
